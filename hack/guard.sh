#!/bin/sh
# Ends PostgREST and PostgreSQL when nobody needs them any more. Distro's own processes end when their supervisor is gone;
# these don't know of it. Standard input is a pipe that supervisor and orchestrators hold open, on which the supervisor
# says who runs: `postgres 1234`, or `postgres` when it is down. It ends when all of them have ended, however.
postgres='' postgrest=''
while read -r name pid; do
	case $name in
		postgres) postgres=$pid ;;
		postgrest) postgrest=$pid ;;
	esac
done
# A stopped process hears nothing before it goes on.
[ -z "$postgrest" ] || kill -TERM "$postgrest" && kill -CONT "$postgrest"
# A fast shutdown: sessions are ended.
[ -z "$postgres" ] || kill -INT "$postgres" && kill -CONT "$postgres"
