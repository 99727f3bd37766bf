#!/bin/sh
# redis-cli in the Redis container of docker-compose.yml, logged in as the user `backend`.
REDISCLI_AUTH=$(cat /run/secrets/backend/password)
export REDISCLI_AUTH
PATH=${PATH#*:} # without the first folder, which has this script
exec redis-cli --user backend --no-auth-warning "$@"
