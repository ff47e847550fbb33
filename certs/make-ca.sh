#!/usr/bin/env bash
# Makes the authority of a lab for use by hand: ca.pem, which clients and browsers are told to trust, and ca.key.
# usage: certs/make-ca.sh [FOLDER]      (default: the folder of this script)
set -euo pipefail

folder=${1:-$(dirname "$0")}
mkdir -p "$folder"
if [[ -e $folder/ca.key ]]; then
    echo "$folder/ca.key is there already; remove it and ca.pem to begin anew" >&2
    exit 1
fi
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 397 -subj "/CN=routecause lab ($(hostname))" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:1" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -addext "nameConstraints=critical,permitted;DNS:lab.test" \
    -keyout "$folder/ca.key" -out "$folder/ca.pem" 2> /dev/null
chmod 644 "$folder/ca.pem"
echo "made $folder/ca.pem and $folder/ca.key"
echo "use it: routecause lab --dir $folder"
