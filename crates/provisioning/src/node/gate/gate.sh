#!/bin/sh
# The gate: the only program that Seedplane's key can start on this server. It does what the manifest beside it says for the
# action that it is asked for, and refuses everything else. It runs as the user seedbox-mgr, started by a line like this in
# /var/lib/seedbox-mgr/.ssh/authorized_keys, which also says whose connection it is:
#
#   restrict,command="/usr/local/lib/seedplane/gate <connection-id>" ssh-ed25519 <key> seedplane-<connection-id>
#
# A request is `<request-id> <action>[ <argument>]`. Exit codes: 126 refused, 124 ended at the action's limit, 69 this server
# lacks the programs for it, otherwise the action's own (of several commands the first that is not 0).
#
# It calls itself twice: sshd's call has one argument, the connection; the second call has the request, too, checks it, writes
# it down and watches over the third call, which does it.

set -fu

# Nothing of the environment that came with the session goes further than this line.
case $# in
    1)
        exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
            /usr/local/lib/seedplane/gate "$1" "${SSH_ORIGINAL_COMMAND-}"
        ;;
esac

newline='
'
IFS=" $newline"
umask 077
folder=/usr/local/lib/seedplane
manifest=$folder/manifest
keys=/var/lib/seedbox-mgr/.ssh/authorized_keys
log=/var/log/seedplane-gate.log
connection=- request=- action=- argument=- text=

# Writes a line to the log; fails where that cannot be done.
write_log() { # <outcome>
    printf '%s %s %s %s %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$connection" "$request" "$action" "$argument" "$1" \
        2>/dev/null >>"$log"
}

refuse() { # <why>
    # What was sent is made harmless for the log and its readers, byte by byte.
    harmless=$(printf '%.120s' "$1${text:+ - $text}" | tr -c 'A-Za-z0-9@._+/= -' '?')
    write_log "refused $harmless" 2>/dev/null
    say_refused "$1"
    exit 126
}

say_refused() { # <why>
    printf 'seedplane-gate: refused: %s\n' "$1" >&2
}

is_uuid() { # <word>
    x='[0-9a-f]'
    x=$x$x$x$x
    # shellcheck disable=SC2254 # the expansions are the pattern
    case $1 in $x$x-$x-$x-$x-$x$x$x) return 0 ;; esac
    return 1
}

# An Ed25519 public key in base64: 51 bytes, the first of which are always the same.
is_ed25519_key() { # <word>
    [ ${#1} -eq 68 ] || return 1
    case $1 in *[!A-Za-z0-9+/]*) return 1 ;; AAAAC3NzaC1lZDI1NTE5AAAAI*) return 0 ;; esac
    return 1
}

# A salt of 16 bytes and a key of 64, both in base64, with a dot between them.
is_password_hash() { # <word>
    [ ${#1} -eq 113 ] || return 1
    case $1 in ??????????????????????==.*==) ;; *) return 1 ;; esac
    body=${1#??????????????????????==.}
    case ${1%"==.$body"}${body%==} in *[!A-Za-z0-9+/]*) return 1 ;; esac
}

is_among() { # <word> <word>...
    wanted=$1
    shift
    for word; do
        [ "$word" != "$wanted" ] || return 0
    done
    return 1
}

check() { # <what was asked for>
    text=$1
    [ -n "$text" ] || refuse 'there is no command and no shell here'
    [ ${#text} -le 200 ] || refuse 'it is longer than 200 bytes'
    case $text in
        *[!A-Za-z0-9@._+/=\ -]*) refuse 'it has characters that no request has' ;;
        ' '* | *' ' | *'  '*) refuse 'words are separated by one space' ;;
    esac
    # shellcheck disable=SC2086 # words of harmless characters
    set -- $text
    is_uuid "$1" || refuse 'it does not begin with the id of a request'
    request=$1
    # An open session outlives the line that let it in.
    sed '/^[[:space:]]*#/d' "$keys" 2>/dev/null | grep -qF "$ours" || refuse 'no key is let in for this connection any more'
    [ $# -ge 2 ] || refuse 'it names no action'
    [ $# -le 3 ] || refuse 'there are words after the argument'
    [ -r "$manifest" ] || refuse 'the manifest cannot be read'
    read_manifest_for "$2" || refuse 'the manifest has no such action'
    action=$2
    if [ "$takes" = nothing ]; then
        [ $# -eq 2 ] || refuse 'this action takes no argument'
    else
        [ $# -eq 3 ] || refuse 'this action takes an argument'
        if [ "$takes" = ed25519-key ]; then
            is_ed25519_key "$3" || refuse 'the argument is not the public key of an Ed25519 pair'
        elif [ "$takes" = password-hash ]; then
            is_password_hash "$3" || refuse 'the argument is not the hash of a password'
        else
            # shellcheck disable=SC2086 # a list of words
            is_among "$3" $takes || refuse 'the manifest does not list this argument'
        fi
        argument=$3
    fi
    case $seconds in '' | *[!0-9]*) refuse 'the manifest sets no limit for this action' ;; esac
    write_log begin || refuse 'the log cannot be written'
}

# Finds what the manifest says of an action: after how many seconds it ends, and what it takes.
read_manifest_for() { # <action>
    found=no seconds='' takes=nothing
    while read -r keyword rest; do
        case $keyword in
            action)
                [ "$found" = no ] || break
                [ "${rest% *}" != "$1" ] || { found=yes && seconds=${rest##* }; }
                ;;
            argument) [ "$found" = no ] || takes=$rest ;;
        esac
    done <"$manifest"
    [ "$found" = yes ]
}

# Has the request done within its limit, also if the client leaves in the meantime, and writes down how it ended.
supervise() {
    trap '' HUP
    trap : PIPE
    # A session of its own has a process group of its own, which is ended as a whole.
    setsid "$folder/gate" "$connection" "$request" "$action" "$argument" </dev/null &
    doer=$!
    watch "$doer" "$seconds" </dev/null >/dev/null 2>&1 &
    watcher=$!
    status=0 watched=0
    wait "$doer" || status=$?
    kill -TERM "$watcher" 2>/dev/null
    wait "$watcher" || watched=$?
    if [ "$watched" -eq 124 ]; then
        # Its first process has ended; the others may not have.
        kill -KILL "-$doer" 2>/dev/null
        write_log timeout
        printf 'seedplane-gate: ended after %s seconds\n' "$seconds" >&2
        exit 124
    fi
    write_log "exit=$status"
    exit "$status"
}

# Ends a process group at its limit, and says so with 124. Called off with TERM, it takes its sleep along.
watch() { # <process group> <seconds>
    before=$!
    fired=0
    trap '[ "$!" = "$before" ] || kill -KILL "$!"; exit "$fired"' TERM
    sleep "$2" &
    wait "$!"
    fired=124
    kill -TERM "-$1"
    sleep 2 &
    wait "$!"
    kill -KILL "-$1"
    exit 124
}

# Does the action, line by line.
perform() {
    here=no status=0 tried=none missing=
    while read -r keyword rest <&3; do
        if [ "$keyword" = action ]; then
            [ "$here" = no ] || break
            [ "${rest% *}" != "$action" ] || here=yes
        elif [ "$here" = yes ]; then
            case $keyword in
                run)
                    report_missing
                    tried=some missing=
                    run "$rest"
                    ;;
                or) [ "$tried" != some ] || run "$rest" ;;
                built-in) run_built_in ;;
            esac
        fi
    done 3<"$manifest"
    report_missing
    exit "$status"
}

# Runs a line of the manifest if its programs are here.
run() { # <words, {} standing for the argument>
    line=$1
    while :; do
        case $line in
            *'{}'*) line=${line%%"{}"*}$argument${line#*"{}"} ;;
            *) break ;;
        esac
    done
    # shellcheck disable=SC2086 # started word by word
    set -- $line
    case $1 in sudo | doas) find_program "${3-}" || return 0 ;; esac
    find_program "$1" || return 0
    tried=ran code=0
    printf '$ %s\n' "$line"
    shift
    "$program" "$@" 3<&- || code=$?
    keep_first "$code"
}

# Where a program lies. The shell's own commands and what is defined here are no programs.
find_program() { # <name>
    for directory in /usr/sbin /usr/bin /sbin /bin; do
        program=$directory/$1
        [ ! -f "$program" ] || [ ! -x "$program" ] || return 0
    done
    case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac
    return 1
}

report_missing() {
    [ "$tried" = some ] || return 0
    printf 'seedplane-gate: not available on this server, which lacks:%s\n' "$missing" >&2
    keep_first 69
}

keep_first() { # <exit code>
    [ "$status" -ne 0 ] || status=$1
}

run_built_in() {
    code=0
    case $action in
        hello) hello || code=$? ;;
        log) grep "^[^ ]* $connection " "$log" | tail -n 500 ;;
        key-add | key-remove | revoke) change_keys || code=$? ;;
        *) code=126 && say_refused 'this gate has nothing of this name built in' ;;
    esac
    keep_first "$code"
}

hello() {
    gate_sum=$(sha256sum "$folder/gate") && manifest_sum=$(sha256sum "$manifest") &&
        printf 'seedplane-gate 1\ngate %s\nmanifest %s\n' "${gate_sum%% *}" "${manifest_sum%% *}"
}

# Changes which keys are let in for this connection. Lines of others stay as they are, byte for byte.
change_keys() {
    # One at a time. The kernel gives the lock back when its holder ends, however it ends.
    exec 9<"${keys%/*}" && flock 9 || return 1
    all=$(sed '/^[[:space:]]*#/d' "$keys") || return 1
    mine=$(printf '%s\n' "$all" | sed -n "\\|$ours|p")
    case $action in
        key-add) add_key ;;
        key-remove) remove_key ;;
        revoke) without "\\|$ours|d" && put_in_place && end_sessions && echo 'no key is let in for this connection any more' ;;
    esac
}

add_key() {
    case $mine in
        *cert-authority*) say_refused 'certificates let this connection in, and no key is added to it' && return 126 ;;
        *" $argument"*) echo 'the key is here already' && return 0 ;;
        *"$newline"*) say_refused 'this connection has two keys already' && return 126 ;;
    esac
    case $all in
        *" $argument"*) say_refused 'the key is in a line that is not of this connection' && return 126 ;;
    esac
    # Before the others, so that their last line stays as it is, also if it is unfinished.
    { printf 'restrict,%s ssh-ed25519 %s seedplane-%s\n' "$ours" "$argument" "$connection" && cat "$keys"; } >"$keys.new" &&
        put_in_place && echo 'the key was added'
}

remove_key() {
    case $mine in
        *" $argument"*) ;;
        *) echo 'the key is not here' && return 0 ;;
    esac
    if [ -z "$(printf '%s\n' "$mine" | sed "\\| $argument|d")" ]; then
        say_refused 'it is the last key of this connection: revoke removes that'
        return 126
    fi
    without "\\|$ours|{
        \\| $argument|d
    }" && put_in_place && end_sessions && echo 'the key was removed'
}

# Writes the file anew with a script of sed applied to the lines that are no comments.
without() { # <script>
    sed "/^[[:space:]]*#/b
        $1" "$keys" >"$keys.new"
}

put_in_place() {
    chmod 600 "$keys.new" && mv -f "$keys.new" "$keys"
}

# A session that a removed key opened could go on asking, and nothing tells which key opened which: ends the other sessions of
# this user, and what this connection is asking for in them.
end_sessions() {
    spared=' '
    process=$$
    while [ -r "/proc/$process/status" ]; do
        spared="$spared$process "
        process=$(parent_of "$process")
    done
    set +f
    all=$(grep -ls "^Uid:[[:space:]]*$(id -u)[[:space:]]" /proc/[0-9]*/status)
    set -f
    for found in $all; do
        process=${found#/proc/}
        process=${process%/status}
        # Whoever watches over us is a child of one above us.
        case $spared in *" $process "* | *" $(parent_of "$process") "*) continue ;; esac
        case $(tr '\0' ' ' 2>/dev/null <"/proc/$process/cmdline") in
            sshd* | *"$folder/gate $connection "*) kill -KILL "$process" 2>/dev/null ;;
        esac
    done
    return 0
}

parent_of() { # <process>
    sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null
}

if [ $# -eq 0 ] || ! is_uuid "$1"; then
    refuse 'the line that let you in names no connection'
fi
connection=$1
# A line is ours by its command: the owner may have added restrictions of their own to it.
ours="command=\"$folder/gate $connection\""
case $# in
    2) check "$2" && supervise ;;
    4) request=$2 action=$3 argument=$4 && perform ;;
    *) refuse 'the line that let you in has more than a connection in it' ;;
esac
