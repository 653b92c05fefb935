#!/bin/sh
# usage: tls.sh NAME|ADDRESS...
#
# Makes a certificate for a locker that is reached by these names and addresses,
# in the working folder: locker.pem and locker-key.pem are its SSL_CERT and
# SSL_KEY, ca.pem is the ca_cert of the pipelines. The authority is made once; to
# renew the certificate, run it again. Keep ca-key.pem off the locker's machine.
set -eu
umask 077
test $# -gt 0 || { sed -n 's/^# \(usage.*\)/\1/p' "$0" >&2; exit 2; }

names=
for name; do
	case $name in
	*:*) names="$names,IP:$name" ;;
	*[!0-9.]*) names="$names,DNS:$name" ;;
	*) names="$names,IP:$name" ;;
	esac
done

new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
if ! test -e ca.pem; then
	openssl req -x509 $new -keyout ca-key.pem -out ca.pem -days 3650 -subj "/CN=locker CA" \
		-addext keyUsage=critical,keyCertSign
fi
openssl req $new -keyout new-key.pem -out new.csr -subj /CN=locker
printf '%s\n' "subjectAltName=${names#,}" extendedKeyUsage=serverAuth |
	openssl x509 -req -in new.csr -CA ca.pem -CAkey ca-key.pem -days 397 -extfile /dev/stdin -out new.pem
mv new-key.pem locker-key.pem
mv new.pem locker.pem
rm new.csr
