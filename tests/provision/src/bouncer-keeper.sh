# Owns one PgBouncer on behalf of the process that holds the other end of standard input.
#
# Run as: sh -c "$(cat bouncer-keeper.sh)" keeper DIRECTORY PROGRAM
# with its settings in SETTINGS and its users in USERS, as the user that shall own it.
#
# Reads one command a line and answers each with one line, "ok" or "failed". When the input ends, which it does however
# the other process ends, PgBouncer is killed and DIRECTORY is removed.

directory=$1
program=$2
launched=

# A signal only interrupts what is being waited for; the way out is always the end of this script. Nobody may be left to
# read the answers, so a broken pipe is no reason to die either.
trap : HUP INT TERM PIPE
umask 077

# The file `exited` says that PgBouncer is gone, whether it was asked to go or not.
launch() {
    rm -f "$directory/exited" "$directory/process"
    printf '%s\nlisten_port = %s\nauth_file = %s\n' "$SETTINGS" "$1" "$directory/users" >"$directory/pgbouncer.ini" &&
        printf '%s\n' "$USERS" >"$directory/users" || return 1
    (
        unset SETTINGS USERS
        "$program" "$directory/pgbouncer.ini" &
        echo $! >"$directory/process"
        wait $!
        echo $? >"$directory/exited"
    ) </dev/null >>"$directory/pgbouncer.log" 2>&1 &
    launched=$!
}

# It has nothing to lose, and its end without notice is what some tests ask for.
halt() {
    [ -n "$launched" ] || return 0
    until [ -e "$directory/exited" ]; do
        [ ! -s "$directory/process" ] || kill -s KILL "$(cat "$directory/process")" 2>/dev/null
        sleep 0.02
    done
    wait "$launched"
    launched=
}

mkdir "$directory" || exit 1

while read -r command argument; do
    case $command in
    launch) launch "$argument" ;;
    halt) halt ;;
    *) false ;;
    esac && echo ok || echo failed
done

halt
rm -rf "$directory"
