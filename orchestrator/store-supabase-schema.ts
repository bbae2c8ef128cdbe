/** What this release expects of the database: the number that `distro_schema()` tells. Every migration raises both. */

export const SCHEMA_VERSION = 2;
