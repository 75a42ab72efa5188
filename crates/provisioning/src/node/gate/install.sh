#!/bin/sh
# Lets Seedplane reach this server with a key of ours that can start the gate below and nothing else, or takes that back.
#
# It makes or changes only this:
#   the user and the group seedbox-mgr (no password, not root), whose home is /var/lib/seedbox-mgr
#   /usr/local/lib/seedplane/gate      what our key starts
#   /usr/local/lib/seedplane/manifest  the list of all that it does
#   /var/log/seedplane-gate.log        its record of what was asked for and done
#   /etc/sudoers.d/seedplane or /etc/doas.d/seedplane.conf, where sudo or doas is here: lets that user restart the services of
#                                      the manifest and read their logs, and nothing else
#
# It can be run again at any time, and this very text is the same for everybody: only its arguments differ.

set -fu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 022

user=seedbox-mgr
home=/var/lib/seedbox-mgr
keys=$home/.ssh/authorized_keys
new_keys=$home/authorized_keys.new
folder=/usr/local/lib/seedplane
log=/var/log/seedplane-gate.log
sudo_rules=/etc/sudoers.d/seedplane
doas_rules=/etc/doas.d/seedplane.conf

usage() {
    cat <<'END'
usage: sh install.sh add --connection <id> --key <key> [--without-restart]
       sh install.sh add --connection <id> --authority <key> [--without-restart]
       sh install.sh remove --connection <id>
       sh install.sh show

add     lets Seedplane in for this connection, to do what the manifest lists
        --key               with this key
        --authority         with certificates that this key signed for this connection, each good for some minutes
        --without-restart   without sudo or doas: services are looked at and never restarted
remove  takes that back; with the last connection everything that was installed goes, too
show    prints what is installed here
END
}

say() { printf '%s\n' "$*"; }

stop() { # <why>
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

misused() { # <why>
    printf 'install.sh: %s; nothing was changed\n' "$*" >&2
    usage >&2
    exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

is_uuid() { # <word>
    x='[0-9a-f]'
    x=$x$x$x$x
    # shellcheck disable=SC2254 # the expansions are the pattern
    case $1 in $x$x-$x-$x-$x-$x$x$x) return 0 ;; esac
    return 1
}

is_ed25519_key() { # <word>
    [ ${#1} -eq 68 ] || return 1
    case $1 in *[!A-Za-z0-9+/]*) return 1 ;; AAAAC3NzaC1lZDI1NTE5AAAAI*) return 0 ;; esac
    return 1
}

user_exists() { id -u "$user" >/dev/null 2>&1; }

# Puts standard input in a file of root's, unless that is in it already.
put() { # <file> <mode> <what it is>
    temporary=$1.new
    rm -f "$temporary"
    { cat >"$temporary" && chmod "$2" "$temporary"; } || stop "cannot write $temporary"
    if [ -f "$1" ] && [ "$(sha256sum <"$temporary")" = "$(sha256sum <"$1")" ]; then
        rm -f "$temporary"
        chmod "$2" "$1"
        say "$1 ($3) is in place already."
    else
        mv -f "$temporary" "$1" || stop "cannot write $1"
        say "Wrote $1 ($3)."
    fi
}

print_gate() {
    cat <<'SEEDPLANE_GATE_ENDS_HERE'
@GATE@
SEEDPLANE_GATE_ENDS_HERE
}

print_manifest() {
    cat <<'SEEDPLANE_MANIFEST_ENDS_HERE'
@MANIFEST@
SEEDPLANE_MANIFEST_ENDS_HERE
}

# The lines of the manifest that begin with sudo or doas, the argument filled in: <program> <words>.
print_privileged() { # sudo or doas
    print_manifest | while read -r keyword rest; do
        case $keyword in
            action) words= ;;
            argument) words=$rest ;;
            run | or)
                case $rest in
                    "$1 -n "*)
                        command=${rest#"$1 -n "}
                        has "${command%% *}" || continue
                        for word in $words; do
                            printf '%s\n' "${command%%"{}"*}$word${command#*"{}"}"
                        done
                        ;;
                esac
                ;;
        esac
    done
}

print_sudo_rules() {
    say "# Installed by Seedplane: all that its gate, $folder/gate, may start as root."
    print_privileged sudo | while read -r program words; do
        say "$user ALL=(root) NOPASSWD: $(command -v "$program") $words"
    done
}

print_doas_rules() {
    say "# Installed by Seedplane: all that its gate, $folder/gate, may start as root."
    print_privileged doas | while read -r program words; do
        say "permit nopass $user as root cmd $program args $words"
    done
}

# Rules are checked by the program that reads them before they are where it reads them: a mistake in them would lock out others.
put_rules() { # <file> <mode> <program to check with> <its option> <the rules>
    checked=$folder/rules
    rm -f "$checked"
    { printf '%s\n' "$5" >"$checked" && chmod "$2" "$checked"; } || stop "cannot write $checked"
    if "$3" "$4" "$checked" >/dev/null 2>&1; then
        put "$1" "$2" 'what the gate may start as root' <"$checked"
    else
        say "$3 does not accept our rules, so $1 was not written: services cannot be restarted."
    fi
    rm -f "$checked"
}

remove_rules() {
    for rules in "$sudo_rules" "$doas_rules"; do
        if [ -e "$rules" ]; then
            rm -f "$rules" && say "Removed $rules."
        fi
    done
}

install_rules() {
    if [ "$restart" = no ]; then
        remove_rules
        say "No rule for sudo or doas is in place: services cannot be restarted."
        return
    fi
    possible=no
    if has sudo && has visudo && [ -d "${sudo_rules%/*}" ] && [ -n "$(print_privileged sudo)" ]; then
        possible=yes
        put_rules "$sudo_rules" 440 visudo -cf "$(print_sudo_rules)"
    fi
    if has doas && [ -d "${doas_rules%/*}" ] && [ -n "$(print_privileged doas)" ]; then
        possible=yes
        put_rules "$doas_rules" 400 doas -C "$(print_doas_rules)"
    fi
    [ "$possible" = yes ] ||
        say "Neither sudo nor doas with a folder for rules is here, or no service manager: services cannot be restarted."
}

make_user() {
    if user_exists; then
        say "The user $user is here already."
    elif has useradd; then
        useradd --system --user-group --no-create-home --home-dir "$home" --shell /bin/sh "$user" ||
            stop "useradd could not make the user $user"
        say "Made the user $user."
    elif has adduser && has addgroup; then
        { addgroup -S "$user" && adduser -S -D -H -h "$home" -s /bin/sh -G "$user" "$user"; } ||
            stop "adduser could not make the user $user"
        say "Made the user $user."
    else
        stop "this server has neither useradd nor adduser"
    fi
    # No password fits `*`. Without it sshd takes the account for one that is locked, and its keys with it.
    if ! grep -q "^$user:\*:" /etc/shadow; then
        if has usermod; then
            usermod -p '*' "$user"
        else
            printf '%s:*\n' "$user" | chpasswd -e >/dev/null 2>&1
        fi || stop "cannot set the password field of $user"
        say "Closed its password for good: nobody logs in as $user with one."
    fi
}

make_log() {
    if [ -e "$log" ] && [ "$(stat -c %u "$log")" = "$(id -u "$user")" ]; then
        say "$log (the gate's record) is in place already."
        return
    fi
    has chattr && chattr -a "$log" 2>/dev/null
    { : >>"$log" && chown "$user:$user" "$log" && chmod 640 "$log"; } || stop "cannot make $log"
    if has chattr && chattr +a "$log" 2>/dev/null; then
        say "Made $log, the gate's record, to which lines can only be added."
    else
        say "Made $log, the gate's record. (Nothing here can keep its lines from being changed: chattr +a did not work.)"
    fi
}

lines_of() { # <connection, or nothing for any>
    sed -n "/^[[:space:]]*#/d;\\|command=\"$folder/gate $1|p" "$keys" 2>/dev/null
}

# Only the gate and this script change the file, one at a time.
lock_keys() {
    { exec 9<"$home/.ssh" && flock 9; } || stop "cannot lock $home/.ssh"
    [ ! -L "$keys" ] || stop "$keys is a symbolic link, which is none of our doing"
}

# What is to be in the file is made in a folder of root's, so that root writes nowhere where somebody else put a link.
put_keys() {
    { chmod 600 "$new_keys" && chown "$user:$user" "$new_keys" && mv -f "$new_keys" "$keys"; } || stop "cannot write $keys"
}

add_key() {
    if [ ! -d "$home/.ssh" ]; then
        { mkdir -p "$home/.ssh" && chmod 755 "$home" && chmod 700 "$home/.ssh" && chown "$user:$user" "$home/.ssh"; } ||
            stop "cannot make $home/.ssh"
        say "Made $home/.ssh."
    fi
    lock_keys
    [ -e "$keys" ] || { : >"$new_keys" && put_keys; }
    case $(lines_of "$connection\"") in
        *" $key"*) say "The key of this connection is in $keys already." ;;
        *"$newline"* | *cert-authority*)
            stop "$keys has other keys of this connection. If they are not known to you, run this with remove first"
            ;;
        *)
            line="restrict,${trusted}command=\"$folder/gate $connection\" ssh-ed25519 $key seedplane-$connection"
            # First in the file, so that what is in it stays as it is.
            { say "$line" && cat "$keys"; } >"$new_keys" || stop "cannot write $new_keys"
            put_keys
            say "Added this line to $keys:"
            say "  $line"
            ;;
    esac
    exec 9<&-
    if has selinuxenabled && selinuxenabled; then
        chcon -R -t ssh_home_t "$home/.ssh" && say "Marked $home/.ssh for SELinux as keys that sshd may read."
    fi
}

# Some servers let only listed users in, which is for their owner to change.
warn_about_sshd() {
    settings=$(sshd -T -C "user=$user,host=localhost,addr=127.0.0.1" 2>/dev/null) || return 0
    case $newline$settings in
        *"${newline}pubkeyauthentication no"*) say "Note: sshd here lets nobody in with a key (PubkeyAuthentication)." ;;
    esac
    for word in users groups; do
        allowed=$(printf '%s\n' "$settings" | sed -n "s/^allow$word //p" | tr '\n' ' ')
        case " $allowed" in
            ' ' | *" $user "*) ;;
            *) say "Note: sshd here lets in only some $word (Allow$word: $allowed); $user may have to be added." ;;
        esac
    done
}

# What sshd takes from whoever logs in is in force before the gate is: some of it decides what the gate's shell loads and runs.
warn_about_environment() {
    settings=$(sshd -T -C "user=$user,host=localhost,addr=127.0.0.1" 2>/dev/null) || return 0
    exposed='' by=''
    for name in LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT SHELLOPTS BASH_ENV ENV; do
        for pattern in $(printf '%s\n' "$settings" | sed -n 's/^acceptenv //p'); do
            # With other characters in it a word is not the same pattern to this shell as to sshd, and fits none of these.
            case $pattern in *[!A-Za-z0-9_*?]*) continue ;; esac
            # shellcheck disable=SC2254 # the expansion is the pattern
            case $name in $pattern) ;; *) continue ;; esac
            exposed="$exposed$newline  $name"
            case "$by " in *" $pattern "*) ;; *) by="$by $pattern" ;; esac
            break
        done
    done
    [ -n "$exposed" ] || return 0
    say
    say "WARNING: sshd on this server takes environment variables from whoever logs in that act before the gate starts:$exposed"
    say "They come in by AcceptEnv with$by."
    say "Whoever had our key could do more here than the gate allows. Everything was installed all the same."
    say "Name in AcceptEnv only what you need, for example LANG LC_*, in /etc/ssh/sshd_config and /etc/ssh/sshd_config.d, and"
    say "have sshd read it again (systemctl reload ssh, or rc-service sshd reload). Until then take our key away with remove."
}

show_host_keys() {
    say
    say "The fingerprints of this server's SSH keys. Compare them with the one that the dashboard shows once it has connected:"
    set +f
    for file in /etc/ssh/ssh_host_*_key.pub; do
        [ ! -r "$file" ] || say "  $(ssh-keygen -lf "$file")"
    done
    set -f
}

add() {
    if user_exists && ! grep -q "^$user:[^:]*:[1-9][0-9]*:[0-9]*:[^:]*:$home:" /etc/passwd; then
        stop "there is a user $user here already that is not ours; nothing was changed"
    fi
    for program in chmod chown date env flock grep id mkdir mv sed setsid sha256sum ssh-keygen stat tail tr; do
        has "$program" || stop "this server lacks the program $program, which this needs; nothing was changed"
    done
    make_user
    { mkdir -p "$folder" && chmod 755 "$folder"; } || stop "cannot make $folder"
    print_manifest | put "$folder/manifest" 644 'the list of all that the gate does' || exit 1
    print_gate | put "$folder/gate" 755 'all that our key can start' || exit 1
    make_log
    install_rules
    add_key
    warn_about_sshd
    show_host_keys
    warn_about_environment
    say
    say "Done. To take it back: sh install.sh remove --connection $connection"
}

# Ends what the user runs: all of it, or only its SSH sessions.
end_processes() { # all or sessions
    uid=$(id -u "$user")
    set +f
    running=$(grep -ls "^Uid:[[:space:]]*${uid}[[:space:]]" /proc/[0-9]*/status)
    set -f
    for found in $running; do
        process=${found#/proc/}
        process=${process%/status}
        if [ "$1" = all ] || grep -q '^Name:[[:space:]]*sshd' "$found" 2>/dev/null; then
            kill -KILL "$process" 2>/dev/null && say "Ended the process $process of $user."
        fi
    done
}

remove() {
    if ! user_exists && [ ! -e "$folder" ]; then
        say "Nothing of Seedplane is installed here."
        return
    fi
    others=no
    if [ -e "$keys" ]; then
        lock_keys
        if [ -n "$(lines_of "$connection\"")" ]; then
            sed "/^[[:space:]]*#/b
                \\|command=\"$folder/gate $connection\"|d" "$keys" >"$new_keys" || stop "cannot write $new_keys"
            put_keys
            say "Removed the lines of this connection from $keys."
        else
            say "There is no line of this connection in $keys."
        fi
        exec 9<&-
        if [ -n "$(lines_of '')" ]; then
            end_processes sessions
            say "Other connections are left, so the gate and the user stay."
            return
        fi
        [ ! -s "$keys" ] || others=yes
    fi
    remove_rules
    if [ "$others" = yes ]; then
        end_processes sessions
        say "$keys has lines that are not ours, so the user $user and its home stay."
    elif user_exists; then
        end_processes all
        remove_user
        rm -rf "$home" && say "Removed $home."
    fi
    rm -rf "$folder" && say "Removed $folder with the gate and the manifest."
    if [ -e "$log" ]; then
        has chattr && chattr -a "$log" 2>/dev/null
        rm -f "$log" && say "Removed $log."
    fi
    say "Done: nothing of Seedplane is left here."
}

remove_user() {
    tries=0
    while user_exists; do
        if has userdel; then
            userdel "$user" >/dev/null 2>&1
        else
            deluser "$user" >/dev/null 2>&1
            delgroup "$user" >/dev/null 2>&1
        fi
        # A process that was ended may be there for a moment.
        tries=$((tries + 1))
        [ "$tries" -lt 10 ] || stop "cannot remove the user $user"
        user_exists && sleep 1
    done
    say "Removed the user $user and its group."
}

show() {
    if user_exists; then say "The user $user: $(grep "^$user:" /etc/passwd)"; else say "There is no user $user."; fi
    for file in "$folder/gate" "$folder/manifest"; do
        if [ -e "$file" ]; then say "SHA-256 $(sha256sum "$file")"; else say "There is no $file."; fi
    done
    for file in "$sudo_rules" "$doas_rules"; do
        [ ! -e "$file" ] || { say "$file:" && cat "$file"; }
    done
    if [ -e "$keys" ]; then say "$keys:" && cat "$keys"; fi
    if [ -e "$log" ]; then say "The last lines of $log:" && tail -n 10 "$log"; fi
}

newline='
'
what=${1-}
connection='' key='' trusted='' restart=yes
case $what in
    add | remove | show) shift ;;
    -h | --help | help) usage && exit 0 ;;
    '') misused 'say what to do' ;;
    *) misused "there is no $what" ;;
esac
while [ $# -gt 0 ]; do
    case $what:$1 in
        add:--connection | remove:--connection | add:--key | add:--authority)
            [ $# -ge 2 ] || misused "$1 needs a word after it"
            case $1 in
                --connection) connection=$2 ;;
                *)
                    [ -z "$key" ] || misused '--key or --authority is given once'
                    key=$2
                    [ "$1" = --key ] || trusted=yes
                    ;;
            esac
            shift 2
            ;;
        add:--without-restart) restart=no && shift ;;
        *:--help) usage && exit 0 ;;
        *) misused "$what does not take $1" ;;
    esac
done
[ "$what" = show ] || is_uuid "$connection" || misused 'the connection is an id like 0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f'
[ "$what" != add ] || is_ed25519_key "$key" || misused 'the key is the 68 characters of an Ed25519 public key'
[ -z "$trusted" ] || trusted="cert-authority,principals=\"seedplane-$connection\","
[ "$(id -u)" -eq 0 ] || misused 'this has to run as root'
"$what"
