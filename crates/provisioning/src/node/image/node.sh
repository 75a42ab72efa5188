#!/bin/sh
# What the gate on this machine has done as root: one verb a call, each safe to repeat. How the box is meant to be stands in
# files below /var/lib/seedplane/state, which the client's unit, the proxy and the firewall follow, also after a restart.
set -fu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 022

state=/var/lib/seedplane/state
home=/srv/seedbox
configuration=$home/profile/qBittorrent/config/qBittorrent.conf
unit=seedbox.service
web=http://127.0.0.1:8080/api/v2/app/version

stop() { # <exit code> <why>
    printf 'node: %s\n' "$2" >&2
    exit "$1"
}

suspension() {
    if [ -r "$state/suspended" ]; then cat "$state/suspended"; else echo no; fi
}

# The client answers everybody without a session with 403.
answers() {
    [ "$(curl -s -o /dev/null -m 5 -w '%{http_code}' "$web" 2>/dev/null)" = 403 ]
}

wait_until_it_answers() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        ! answers || return 0
        sleep 1
    done
    return 1
}

# The ports that the state allows.
apply_firewall() {
    # shellcheck source=/dev/null
    . /etc/seedplane/node.conf
    # In one transaction: nobody finds everything closed in between.
    {
        echo 'flush set inet seedbox open'
        [ "$(suspension)" = everything ] || echo "add element inet seedbox open { 80, 443, $TORRENT_PORT }"
    } | nft -f -
}

write_state() { # <file> <content>
    mkdir -p "$state" && printf '%s\n' "$2" >"$state/$1.new" && mv -f "$state/$1.new" "$state/$1"
}

status() {
    echo 'seedbox-node 1'
    printf 'suspended %s\n' "$(suspension)"
    printf 'client %s\n' "$(systemctl is-active "$unit")"
    if answers; then echo 'answers yes'; else echo 'answers no'; fi
    df -B1 --output=size,avail "$home" | sed -n '2s/^ *\([0-9]*\) *\([0-9]*\)$/disk_total_bytes \1\ndisk_free_bytes \2/p'
    [ ! -e "$state/wiped" ] || echo 'wiped yes'
}

usage() {
    interface=$(ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
    for direction in rx tx; do
        bytes=$(cat "/sys/class/net/${interface:-lo}/statistics/${direction}_bytes" 2>/dev/null)
        printf '%s_bytes_since_boot %s\n' "$direction" "${bytes:-0}"
    done
    printf 'uptime_seconds %s\n' "$(cut -d. -f1 /proc/uptime)"
    printf 'load %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
    printf 'boot_id %s\n' "$(cat /proc/sys/kernel/random/boot_id)"
    bytes=$(du -sB1 "$home/data" 2>/dev/null | cut -f1)
    printf 'data_bytes %s\n' "${bytes:-0}"
    df -B1 --output=avail "$home" | sed -n '2s/^ *\([0-9]*\)$/disk_free_bytes \1/p'
}

suspend() { # service or everything
    case $1 in service | everything) ;; *) stop 2 "there is no suspension '$1'" ;; esac
    # The state first: from here on nothing starts the client, and the proxy shows that the box is suspended.
    write_state suspended "$1" || stop 1 'the state cannot be written'
    systemctl stop "$unit" || stop 1 'the client does not stop'
    apply_firewall || stop 1 'the firewall does not follow'
}

resume() {
    [ ! -e "$state/wiped" ] || stop 1 'the box is wiped'
    rm -f "$state/suspended" || stop 1 'the state cannot be written'
    apply_firewall || stop 1 'the firewall does not follow'
    systemctl start "$unit" || stop 1 'the client does not start'
    wait_until_it_answers || stop 1 'the client was started and does not answer'
}

# Puts the hash into the configuration; whatever fails, the file stays as it was. The folder is the client's user's, whom the
# owner can have run programs: root follows no link that lies there, and writes to no file that was there before.
write_password() (
    folder=${configuration%/*} name=${configuration##*/}
    { cd "$folder" && [ "$(pwd -P)" = "$folder" ] && [ -f "$name" ] && [ ! -L "$name" ] && rm -rf "./$name.new"; } || exit 1
    umask 077
    set -C
    written=no
    # On a full disk any of these lines can be the one that is cut off, and a client without a hash has a password that
    # everybody knows.
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in 'WebUI\Password_PBKDF2='*) continue ;; esac
        printf '%s\n' "$line" || exit 1
        [ "$line" = '[Preferences]' ] || continue
        printf 'WebUI\\Password_PBKDF2="@ByteArray(%s:%s)"\n' "$salt" "$key" || exit 1
        written=yes
    done <"$name" >"./$name.new" || exit 1
    [ "$written" = yes ] && chown -h seedbox:seedbox "./$name.new" && mv -fT "./$name.new" "./$name"
)

rotate() { # <salt>.<key>, both in base64
    salt=${1%.*} key=${1#*.}
    { [ "${#salt}" -eq 24 ] && [ "${#key}" -eq 88 ]; } || stop 2 'that is no password hash'
    case $salt$key in *[!A-Za-z0-9+/=]*) stop 2 'that is no password hash' ;; esac
    # 75: the box is suspended and keeps its password.
    [ ! -e "$state/suspended" ] || stop 75 'the box is suspended'
    [ ! -e "$state/wiped" ] || stop 1 'the box is wiped'
    # A client that runs writes its configuration anew when it ends, and sessions end with it only.
    systemctl stop "$unit" || stop 1 'the client does not stop'
    write_password || stop 1 'the configuration cannot be written: the client is stopped and keeps its password'
    systemctl start "$unit" || stop 1 'the client does not start'
    wait_until_it_answers || stop 1 'the client has its new password and does not answer'
}

restart() {
    # 75: the box is suspended and stays so.
    [ ! -e "$state/suspended" ] || stop 75 'the box is suspended'
    [ ! -e "$state/wiped" ] || stop 1 'the box is wiped'
    systemctl stop "$unit" || stop 1 'the client does not stop'
    systemctl start "$unit" || stop 1 'the client does not start'
    wait_until_it_answers || stop 1 'the client was started and does not answer'
}

wipe() {
    { write_state suspended everything && write_state wiped yes; } || stop 1 'the state cannot be written'
    systemctl stop "$unit" || stop 1 'the client does not stop'
    apply_firewall || echo 'the firewall did not follow'
    # The client may write everywhere in its home, and names of files may have lines.
    files=$(find "$home" -mindepth 1 -type f -printf x | wc -c)
    bytes=$(du -sB1 "$home" | cut -f1)
    find "$home" -mindepth 1 -delete || stop 1 'not every file could be deleted'
    printf '%s files (%s bytes) of the client and its owner deleted\n' "$files" "$bytes"
    rm -f /etc/seedplane/qBittorrent.conf
    journalctl --quiet --rotate >/dev/null 2>&1 && journalctl --quiet --vacuum-time=1s >/dev/null 2>&1 &&
        echo 'the system journal emptied'
    sync
    if trimmed=$(fstrim -v "$home" 2>/dev/null); then
        printf 'freed blocks given back to the disk: %s\n' "${trimmed#*: }"
    else
        echo 'freed blocks could not be given back to the disk'
    fi
}

case $#:${1-} in
    1:status | 1:usage | 1:resume | 1:restart | 1:wipe) "$1" ;;
    1:apply) apply_firewall ;;
    2:suspend | 2:rotate) "$1" "$2" ;;
    *) stop 2 'usage: seedplane-node status | usage | suspend service|everything | resume | restart | rotate <hash> | wipe' ;;
esac
