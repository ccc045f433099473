#!/usr/bin/env bash
# A working node on loopback, with nothing to configure.
set -eu
cd "$(dirname "$0")/.."
state=./.dmpd
dns=${DNS_PORT:-5353} http=${HTTP_PORT:-8053} zone=${ZONE:-mesh.test}
token=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
for port in "$dns" "$http"; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "Port $port on 127.0.0.1 is taken. Choose others: make run DNS_PORT=5354 HTTP_PORT=8054" >&2
    exit 2
  fi
done
cat <<TXT
A node for the zone $zone: DNS on 127.0.0.1:$dns, HTTP on http://127.0.0.1:$http, state in $state. Ctrl-C ends it.
Operator token of this run: $token

Try, from another terminal:
  dig -p $dns @127.0.0.1 $zone SOA
  curl http://127.0.0.1:$http/health
  curl -X POST -H "Authorization: Bearer $token" -d '{"value": "v=dmp1;t=test", "ttl": 300}' http://127.0.0.1:$http/v1/records/hello.$zone
  dig -p $dns @127.0.0.1 hello.$zone TXT
  bin/dmpd tsig mint --state-dir $state --subject alice@$zone
A browser shows http://127.0.0.1:$http/ and http://127.0.0.1:$http/status.
If a port is taken: make run DNS_PORT=5354 HTTP_PORT=8054.

TXT
export DMP_OPERATOR_TOKEN=$token
exec bin/dmpd run --state-dir "$state" --domain "$zone" --node-hostname "$zone" \
  --dns-host 127.0.0.1 --dns-port "$dns" --http-host 127.0.0.1 --http-port "$http" \
  --dns-apex-a 127.0.0.1 --dns-apex-ns "$zone" --auth-mode multi-tenant \
  --registration-enabled --registration-endpoint-rate-per-sec 0 --http-rate 0 --dns-update-enabled
