#!/bin/sh
# Draws one picture without any client of ours: `buf curl` (pip install buf-bin) or grpcurl, and the schema.
# usage: generate.sh PROMPT FILE       LORAMUX_SERVER: HOST:PORT of the server
set -eu
server=${LORAMUX_SERVER:-127.0.0.1:50051}
proto=$(dirname "$0")/../../../proto
ask() { buf curl --schema "$proto" --protocol grpc --http2-prior-knowledge --data "$2" "http://$server/loramux.v1.$1"; }
# With grpcurl: grpcurl -plaintext -import-path "$proto" -proto loramux/v1/generation_service.proto -d "$2" "$server" "loramux.v1.$1"

ask AdapterService/ListAdapters '{"pageSize": 100}' | grep '"name"'
ask GenerationService/Generate "{\"prompt\": \"$1\", \"steps\": 8, \"seed\": \"7\"}" |
    sed -n 's/^ *"data": "\(.*\)",*$/\1/p' | base64 -d > "$2"
echo "wrote $2"
