#!/bin/bash
# Sets the machine up once the packages are there. Safe to run twice; stops at the first thing that fails.
set -euo pipefail
# shellcheck source=/dev/null
. /etc/seedplane/node.conf

address=$(curl -sf -m 3 http://169.254.169.254/metadata/v1/interfaces/public/0/ipv4/address || true)
if [[ ! $address =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
    address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([0-9.]*\).*/\1/p')
fi
[[ $address =~ ^[0-9]+(\.[0-9]+){3}$ ]]

id seedbox >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir /srv/seedbox --shell /usr/sbin/nologin seedbox
id seedbox-mgr >/dev/null 2>&1 ||
    useradd --system --user-group --no-create-home --home-dir /var/lib/seedbox-mgr --shell /bin/sh seedbox-mgr
# No password fits `*`; root's, which the provider may have made, included.
usermod -p '*' seedbox-mgr
usermod -p '*' root

install -d -m 0755 /var/lib/seedplane /var/lib/seedplane/state /var/lib/seedbox-mgr
install -d -o seedbox-mgr -g seedbox-mgr -m 0700 /var/lib/seedbox-mgr/.ssh
install -o seedbox-mgr -g seedbox-mgr -m 0600 /etc/seedplane/authorized_keys /var/lib/seedbox-mgr/.ssh/authorized_keys
touch /var/log/seedplane-gate.log
chattr -a /var/log/seedplane-gate.log 2>/dev/null || true
chown seedbox-mgr:seedbox-mgr /var/log/seedplane-gate.log
chmod 0640 /var/log/seedplane-gate.log
chattr +a /var/log/seedplane-gate.log 2>/dev/null || true
visudo -cqf /etc/sudoers.d/seedplane

install -d -o seedbox -g seedbox -m 0750 /srv/seedbox
# Below it everything is made by the client's user: what that user put there must not lead root elsewhere the second time.
as_client=(runuser -u seedbox --)
configuration=/srv/seedbox/profile/qBittorrent/config/qBittorrent.conf
"${as_client[@]}" install -d -m 0750 /srv/seedbox/data
"${as_client[@]}" install -d -m 0700 /srv/seedbox/profile /srv/seedbox/profile/qBittorrent "${configuration%/*}"
if [[ ! -s $configuration ]]; then
    # shellcheck disable=SC2016 # $1 is the inner shell's
    "${as_client[@]}" sh -c 'umask 077 && cat >"$1.new" && mv -f "$1.new" "$1"' sh "$configuration" </etc/seedplane/qBittorrent.conf
fi
rm -f /etc/seedplane/qBittorrent.conf

if [[ -n $DOMAIN ]]; then
    name=${address//./-}.$DOMAIN
    tls=
else
    name=$address
    tls='tls /etc/seedplane/tls/certificate.pem /etc/seedplane/tls/key.pem'
    install -d -o root -g caddy -m 0750 /etc/seedplane/tls
    if [[ ! -s /etc/seedplane/tls/certificate.pem ]]; then
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$address" \
            -addext "subjectAltName=IP:$address" -keyout /etc/seedplane/tls/key.pem -out /etc/seedplane/tls/certificate.pem 2>/dev/null
    fi
    chown root:caddy /etc/seedplane/tls/key.pem /etc/seedplane/tls/certificate.pem
    chmod 0640 /etc/seedplane/tls/key.pem
fi
cat >/etc/caddy/Caddyfile <<CADDY
{
    # The client's user could reach it, and with it change what is served.
    admin off
    default_sni $name
}
https://$name {
    $tls
    encode gzip
    header Strict-Transport-Security "max-age=31536000"
    @suspended file {
        root /var/lib/seedplane/state
        try_files suspended
    }
    handle @suspended {
        header Retry-After 3600
        respond "This seedbox is suspended." 503
    }
    handle {
        # The client compares the name and the port that it is asked by with its own.
        reverse_proxy 127.0.0.1:8080 {
            header_up Host {upstream_hostport}
            header_down Set-Cookie (.*) "\$1; Secure"
        }
    }
}
CADDY
printf '%s\n' "$address" >/etc/seedplane/address
printf 'https://%s\n' "$name" >/etc/seedplane/web_url

systemctl daemon-reload
systemctl enable -q nftables fail2ban caddy seedbox seedplane-state
systemctl restart nftables seedplane-state fail2ban seedbox caddy
systemctl try-reload-or-restart ssh
