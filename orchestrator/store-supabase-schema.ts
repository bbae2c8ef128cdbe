/**
 * What this release expects of the database: the number that `distro_schema()` tells. Every migration raises both, to the
 * last digits of its own name.
 */

export const SCHEMA_VERSION = 14;
