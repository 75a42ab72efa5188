# shellcheck shell=bash
# A Postgres of our own for development, to be sourced. As root it runs as the user postgres: it refuses to be root.

postgres_bin() { # prints the directory of the newest binaries, 15 or newer
    local directory
    if [[ -n ${SEEDPLANE_POSTGRES_BIN:-} ]]; then
        echo "$SEEDPLANE_POSTGRES_BIN"
        return
    fi
    for directory in /usr/lib/postgresql/{30..15}/bin; do
        if [[ -x $directory/initdb ]]; then
            echo "$directory"
            return
        fi
    done
    directory=$(command -v initdb) || {
        echo 'Postgres 15 or newer is missing: run scripts/setup.' >&2
        return 1
    }
    dirname "$(readlink -f "$directory")"
}

as_postgres() {
    if ((EUID == 0)); then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

# postgres_start <directory> [<setting>...]: the cluster in <directory>/data, made if it is missing, with its socket and
# its log in <directory>. Returns when it answers.
postgres_start() {
    local directory=$1 bin options
    shift
    bin=$(postgres_bin)
    mkdir -p "$directory"
    chmod 700 "$directory"
    if ((EUID == 0)); then chown postgres "$directory"; fi
    if [[ ! -e $directory/data/PG_VERSION ]]; then
        as_postgres "$bin/initdb" --username=seedplane --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust \
            --auth-host=reject --no-sync --pgdata="$directory/data" >/dev/null
    fi
    options="-c listen_addresses= -c port=5432 -c unix_socket_directories='$directory' -c fsync=off"
    as_postgres "$bin/pg_ctl" --silent --wait --pgdata="$directory/data" --log="$directory/log" \
        --options="$options $*" start >/dev/null || {
        as_postgres tail -n 5 "$directory/log" >&2
        return 1
    }
    if [[ -z $("$bin/psql" -XAtq -h "$directory" -U seedplane -d postgres \
        -c "select 1 from pg_database where datname = 'seedplane'") ]]; then
        "$bin/psql" -Xq -h "$directory" -U seedplane -d postgres -c 'create database seedplane'
    fi
}

postgres_stop() { # <directory>
    as_postgres "$(postgres_bin)/pg_ctl" --silent --wait --mode=fast --pgdata="$1/data" stop >/dev/null
}

postgres_runs() { # <directory>
    as_postgres "$(postgres_bin)/pg_ctl" --pgdata="$1/data" status >/dev/null 2>&1
}

postgres_url() { # <directory>
    echo "postgres://seedplane@localhost/seedplane?host=$1&port=5432"
}
