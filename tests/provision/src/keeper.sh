# Owns one PostgreSQL server on behalf of the process that holds the other end of standard input.
#
# Run as: sh -c "$(cat keeper.sh)" keeper DIRECTORY BINARIES
# with the superuser's password in PGPASSWORD, as the user that shall own the server.
#
# Reads one command a line and answers each with one line, "ok" or "failed". When the input ends, which it does however
# the other process ends, the server is stopped (after `keep`: left alone until it is stopped or this process is
# terminated) and DIRECTORY is removed.

directory=$1
binaries=$2
keep=no
data=$directory/data
server=

# A signal only interrupts what is being waited for; the way out is always the end of this script. Nobody may be left to
# read the answers, so a broken pipe is no reason to die either.
trap : HUP INT TERM PIPE
umask 077

# Password authentication over TCP, so that a wrong password is refused; the socket lies in a private directory. The
# default collation is linguistic: text that must sort bytewise has to say so itself.
initialize() {
    printf '%s\n' "$PGPASSWORD" >"$directory/password" &&
        "$binaries/initdb" --pgdata="$data" --username=postgres --pwfile="$directory/password" \
            --auth-local=trust --auth-host=password --encoding=UTF8 --locale-provider=icu --icu-locale=en-US \
            --no-sync --no-instructions >"$directory/prepare.log" 2>&1 </dev/null
    initialized=$?
    rm -f "$directory/password"
    return "$initialized"
}

copy_primary() {
    "$binaries/pg_basebackup" --pgdata="$data" --write-recovery-conf --checkpoint=fast --wal-method=stream --no-sync \
        --host=127.0.0.1 --port="$1" --username=postgres >"$directory/prepare.log" 2>&1 </dev/null
}

# The file `exited` says that the server is gone, whether it was asked to go or not.
launch() {
    rm -f "$directory/exited"
    (
        unset PGPASSWORD
        "$binaries/postgres" -D "$data"
        echo $? >"$directory/exited"
    ) </dev/null >>"$directory/server.log" 2>&1 &
    server=$!
}

# An immediate shutdown: nobody needs a checkpoint of what is thrown away, and a crash is what some tests ask for.
# A server that has not written its process number yet is waited for; one that does not react within 15 s is killed.
halt() {
    [ -n "$server" ] || return 0
    tries=0
    while [ ! -e "$directory/exited" ] && [ "$tries" -lt 400 ]; do
        postmaster=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
        signal=QUIT
        [ "$tries" -lt 300 ] || signal=KILL
        [ -z "$postmaster" ] || kill -s "$signal" "$postmaster" 2>/dev/null
        tries=$((tries + 1))
        sleep 0.05
    done
    wait "$server"
    server=
}

mkdir "$directory" || exit 1

while read -r command argument; do
    case $command in
    initialize) initialize ;;
    copy-primary) copy_primary "$argument" ;;
    launch) launch ;;
    halt) halt ;;
    keep) keep=yes ;;
    remove) keep=no ;;
    *) false ;;
    esac && echo ok || echo failed
done

if [ "$keep" = yes ] && [ -n "$server" ]; then
    wait "$server"
fi
halt
rm -rf "$directory" || { sleep 1 && rm -rf "$directory"; }
