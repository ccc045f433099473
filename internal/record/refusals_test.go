package record

// The class of failure of every case in testdata that is refused.

var identityRefusals = map[string]Refusal{
	"versions-unsorted": BadCount, "versions-duplicate": BadCount, "versions-empty-suffix": BadTrailing,
	"versions-len-too-long": BadTrailing, "versions-trailing-byte": BadTrailing, "username-len-zero": BadField,
	"username-len-65": BadField, "username-invalid-utf8": BadField, "username-len-beyond-body": BadLength,
	"body-73-bytes": BadLength, "other-signer": BadSignature, "low-order-spk": BadSignature, "prefix-without-d=": BadPrefix,
	"missing-padding": BadBase64,
}

var manifestRefusals = map[string]Refusal{
	"exp-30-days-plus-1": LivesTooLong, "data-chunks-zero": BadCount, "data-chunks-over-total": BadCount,
	"total-zero": BadCount, "total-1025": BadCount, "hash-count-short": BadLength, "hash-count-long": BadLength,
	"one-extra-byte": BadLength, "short": BadLength, "hash-altered-after-signing": BadSignature, "other-signer": BadSignature,
	"low-order-spk": BadSignature, "wrong-prefix": BadPrefix,
}

var prekeyRefusals = map[string]Refusal{
	"id-zero": BadCount, "exp-30-days-plus-1": LivesTooLong, "other-signer": BadSignature, "extra-byte": BadLength,
	"low-order-expected-signer": BadSignature, "garbage-65-bytes": BadLength, "garbage-64-bytes": BadLength,
}

var heartbeatRefusals = map[string]Refusal{
	"ts-plus-301": NotYet, "ts-minus-301": TooOld, "exp-equals-now": Expired, "exp-past": Expired, "exp-equals-ts": BadTimes,
	"exp-30-days-plus-1": LivesTooLong, "magic-DMPHB01": BadMagic, "magic-DMPHB04": BadMagic,
	"hb02-magic-with-zone-field": BadTrailing, "hb03-magic-without-zone-field": BadField, "trailing-byte": BadTrailing,
	"truncated": BadField, "endpoint-len-zero": BadField, "endpoint-len-256": BadField, "endpoint-len-beyond-body": BadField,
	"version-len-33": BadField, "version-non-ascii": BadField, "zone-len-65": BadField, "zone-invalid-utf8": BadField,
	"endpoint-non-ascii": BadEndpoint, "endpoint-space": BadEndpoint, "endpoint-ftp": BadEndpoint,
	"endpoint-no-scheme": BadEndpoint, "endpoint-userinfo": BadEndpoint, "endpoint-empty-userinfo": BadEndpoint,
	"endpoint-trailing-slash": BadEndpoint, "endpoint-query": BadEndpoint, "endpoint-fragment": BadEndpoint,
	"endpoint-no-host": BadEndpoint, "endpoint-port-only": BadEndpoint, "endpoint-localhost": BadEndpoint,
	"endpoint-ip6-localhost": BadEndpoint, "endpoint-127.0.0.1": BadEndpoint, "endpoint-10.x": BadEndpoint,
	"endpoint-169.254": BadEndpoint, "endpoint-192.0.2.1": BadEndpoint, "endpoint-multicast": BadEndpoint,
	"endpoint-v6-loopback": BadEndpoint, "endpoint-v6-mapped-public-v4": BadEndpoint, "endpoint-v6-ula": BadEndpoint,
	"endpoint-v6-2001-db8": BadEndpoint, "endpoint-bracket-unbalanced": BadEndpoint, "endpoint-bracketed-ipv4": BadEndpoint,
	"signature-bit-flip": BadSignature, "signed-by-other-key": BadSignature, "signature-S-plus-L": BadSignature,
	"low-order-spk": BadSignature, "base64-space": BadBase64, "wrong-prefix": BadBase64, "wire-over-1200": BadLength,
	"empty-payload": BadLength,
}

var clusterRefusals = map[string]Refusal{
	"exp-past": Expired, "exp-5-years-plus-1": LivesTooLong, "wrong-operator-arg": BadSignature,
	"embedded-spk-differs": BadKey, "expected-name-mismatch": BadSubject, "expected-name-double-dot": BadSubject,
	"duplicate-node-id": BadDuplicate, "node-count-33": BadCount, "node-id-17": BadField, "node-id-empty": BadField,
	"node-id-non-ascii": BadField, "http-endpoint-empty": BadField, "http-endpoint-129": BadField, "dns-endpoint-65": BadField,
	"name-empty": BadField, "name-dot": BadField, "name-double-trailing-dot": BadName, "name-65-no-dot": BadField,
	"name-label-64": BadName, "name-underscore": BadName, "name-leading-hyphen": BadName, "name-non-ascii": BadName,
	"trailing-byte": BadTrailing, "count-larger-than-nodes": BadField, "bad-magic": BadMagic, "base64-newline": BadBase64,
	"low-order-operator": BadSignature, "wire-over-1200": BadLength,
}

var bootstrapRefusals = map[string]Refusal{
	"no-entries": BadCount, "seventeen-entries": BadCount, "duplicate-entry-casefold": BadDuplicate,
	"duplicate-entry-dot": BadDuplicate, "exp-past": Expired, "exp-5-years-plus-1": LivesTooLong, "wrong-signer": BadSignature,
	"embedded-signer-differs": BadKey, "expected-domain-mismatch": BadSubject, "entry-bad-domain": BadName,
	"entry-truncated": BadField, "trailing-byte": BadTrailing,
}

var rotationRefusals = map[string]Refusal{
	"exp-past": Expired, "exp-5-years-plus-1": LivesTooLong, "signatures-swapped": BadSignature,
	"new-signature-forged": BadSignature, "old-signature-forged": BadSignature, "single-signature": BadField,
	"same-key": BadKey, "subject-type-0": BadCount, "subject-type-4": BadCount, "cluster-subject-65": BadField,
	"user-no-at": BadName, "user-empty-half": BadName, "user-host-bad": BadName, "subject-invalid-utf8": BadField,
	"subject-mismatch-user-case": BadSubject, "expected-old-mismatch": BadKey, "trailing-byte": BadTrailing,
	"new-key-low-order": BadSignature, "bad-magic": BadMagic, "base64-newline": BadBase64, "rev-ts-plus-301": NotYet,
	"rev-reason-0": BadCount, "rev-reason-5": BadCount, "rev-max-age-exceeded": TooOld, "rev-other-signer": BadSignature,
	"rev-expected-mismatch": BadKey, "rev-low-order": BadSignature, "rev-trailing": BadTrailing,
}

var chunkRefusals = map[string]Refusal{
	"seventeen-byte-errors": BadChecksum, "checksum-flip": BadChecksum, "only-checksum": BadLength, "random-168": BadChecksum,
	"no-parity": BadChecksum, "with-metadata-suffix": BadBase64, "base64-space": BadBase64, "not-base64": BadBase64,
	"empty": BadLength,
}
