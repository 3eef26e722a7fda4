#!/usr/bin/env bash
# Certificates for trying things out, good for 30 days: an authority of our own, and what it signs for the server.
#
#   deploy/compose/certificates.sh FOLDER [NAME...]     NAME: more names of the server than localhost and loramux
set -euo pipefail
umask 022

folder="${1:?expected a folder for the certificates}"
shift
names="DNS:localhost,DNS:loramux,IP:127.0.0.1"
for name in "$@"; do names+=",DNS:$name"; done

mkdir -p "$folder"
cd "$folder"
curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
openssl req -x509 "${curve[@]}" -keyout ca.key -out ca.crt -days 30 -subj "/CN=LoRAMux for trying out" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2>/dev/null
openssl req "${curve[@]}" -keyout tls.key -out tls.csr -subj "/CN=loramux" 2>/dev/null
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out tls.crt \
  -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") 2>/dev/null
rm tls.csr ca.srl
chmod 600 ca.key
chmod 644 tls.key # the server in a container is another user; do not do so with a key that matters
echo "$folder: ca.crt for clients, tls.crt and tls.key for the server"
