# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, never run.

# say TEXT… : progress, on standard error, so that standard output belongs to results.
say() {
    printf '.ci: %s\n' "$*" >&2
}

# can_install : may packages be installed here, that is, is this root on Debian or one of its kin?
can_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep --quiet --extended-regexp \
        '^ID(_LIKE)?="?([a-z ]* )?debian' /etc/os-release
}

# apt_install PACKAGE… : installs them without recommendations and without starting the services they bring: what a
# test needs running, the test starts, and it stops it again. What apt-get says is shown only if it fails.
apt_install() {
    local policy=/usr/sbin/policy-rc.d own_policy='' log status=0
    say "installing $* (apt-get)"
    log=$(mktemp)
    if [ ! -e "$policy" ]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    { apt-get update --quiet=2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "$@"; } \
        >"$log" 2>&1 || status=$?
    if [ -n "$own_policy" ]; then rm -f "$policy"; fi
    if [ "$status" -ne 0 ]; then tail -n 30 "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

# server_program : prints a PostgreSQL server program of this machine; fails where there is none.
server_program() {
    local found
    for found in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin; do
        if [ -x "$found/postgres" ]; then
            printf '%s\n' "$found/postgres"
            return
        fi
    done
    command -v postgres
}

# pooler_program : prints the PgBouncer program of this machine; fails where there is none.
pooler_program() {
    local found
    for found in /usr/sbin /usr/local/sbin /usr/local/bin /opt/homebrew/opt/pgbouncer/bin; do
        if [ -x "$found/pgbouncer" ]; then
            printf '%s\n' "$found/pgbouncer"
            return
        fi
    done
    command -v pgbouncer
}
