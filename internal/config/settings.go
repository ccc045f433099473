package config

// A setting is named as in the reference node's environment without the prefix DMP_ (spec http.md 13, dns.md 10,
// cluster.md 12, federation.md): DNS_PORT is DMP_DNS_PORT in the environment, dns_port in a TOML file, --dns-port as a flag.

// Kind is how a value is written.
type Kind uint8

const (
	String Kind = iota
	Int
	Float
	Bool // 1 true yes on, 0 false no off, any case
	List // comma separated; in TOML an array works too
	Enum
	Hex32 // 64 hex digits
)

// Plane says which process is given a setting.
type Plane uint8

const (
	Data Plane = 1 << iota
	Control
	Both = Data | Control
)

// Setting describes one row of the table.
type Setting struct {
	Name     string
	Kind     Kind
	Default  string
	Plane    Plane
	Reload   bool // taken over on SIGHUP; the others need a restart
	Secret   bool // never printed unless asked for
	Lenient  bool // a bad value falls back to the default with a warning, as the reference does
	Min, Max float64
	Values   []string // of an Enum
	Aliases  []string // older names; the first that is set wins
	Doc      string
}

const (
	maxInt   = 1 << 53 // what a JSON or Lua reader can hold exactly; every limit of ours is below it
	portMax  = 65535
	yearSec  = 366 * 86400
	ttlMaxRR = 1<<31 - 1 // RFC 2181 section 8
)

var settings = []Setting{
	// State and processes.
	{Name: "STATE_DIR", Plane: Both, Doc: "folder of data/ and control/; unset: the folder of DB_PATH"},
	{Name: "DB_PATH", Default: "/var/lib/dmp/dmp.db", Plane: Both, Doc: "the reference node's record database; its folder is the state folder unless STATE_DIR is set"},
	{Name: "DURABILITY", Kind: Enum, Values: []string{"always", "interval", "os"}, Default: "always", Plane: Both, Doc: "when a write counts as stored: synced before the answer, synced every second, or left to the system"},
	{Name: "LOG_RETAIN", Default: "1h", Plane: Both, Doc: "how long covered log segments are kept for readers that are behind (a duration), at most 1 GiB of them"},
	{Name: "MAX_RECORDS", Kind: Int, Default: "10000000", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "records held at most, then SERVFAIL; 0: no limit"},
	{Name: "MAX_BYTES", Kind: Int, Default: "8589934592", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "bytes of records held at most, then SERVFAIL; 0: no limit"},
	{Name: "MAX_WRITER_RECORDS", Kind: Int, Default: "100000", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "records one key or token may add within a day, then REFUSED; 0: no limit"},
	{Name: "CLEANUP_INTERVAL", Kind: Float, Default: "60", Min: 0.001, Max: yearSec, Plane: Data, Doc: "accepted for the reference's sake; expired records are invisible at once and swept every 10 s"},
	{Name: "LOG_LEVEL", Default: "INFO", Plane: Both, Doc: "DEBUG, INFO, WARNING or ERROR"},
	{Name: "LOG_FORMAT", Kind: Enum, Values: []string{"text", "json"}, Default: "text", Plane: Both, Doc: "text or one JSON object a line"},

	// The zone.
	{Name: "SERVED_ZONE", Plane: Both, Doc: "the zone served; unset: the first of CLAIM_PROVIDER_ZONE, CLUSTER_BASE_DOMAIN, DOMAIN, NODE_HOSTNAME"},
	{Name: "CLAIM_PROVIDER_ZONE", Plane: Both, Doc: "second in the chain of SERVED_ZONE"},
	{Name: "CLUSTER_BASE_DOMAIN", Plane: Both, Doc: "third in the chain of SERVED_ZONE; the name of the cluster"},
	{Name: "DOMAIN", Plane: Both, Doc: "fourth in the chain of SERVED_ZONE"},
	{Name: "NODE_HOSTNAME", Plane: Both, Doc: "the node's name in challenges, needed for registration; last in the chain of SERVED_ZONE"},

	// DNS.
	{Name: "DNS_HOST", Kind: List, Default: "0.0.0.0,::", Plane: Data, Doc: "addresses to answer DNS on, UDP and TCP"},
	{Name: "DNS_PORT", Kind: Int, Default: "5353", Min: 0, Max: portMax, Plane: Data, Doc: "port for DNS"},
	{Name: "DNS_TTL", Kind: Int, Default: "60", Min: 0, Max: ttlMaxRR, Plane: Both, Reload: true, Doc: "TTL of answers in seconds, and the SOA's minimum"},
	{Name: "DNS_RATE", Kind: Float, Default: "0", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "messages a second and address; 0: off (RRL and cookies stand in)"},
	{Name: "DNS_BURST", Kind: Float, Default: "200", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "burst of DNS_RATE; 0 turns that limit off"},
	{Name: "DNS_MAX_CONCURRENCY", Kind: Int, Default: "128", Min: 1, Max: 1 << 16, Plane: Data, Doc: "scales the cap of open TCP connections: max(8 times this, 256)"},
	{Name: "DNS_TCP_PER_IP", Kind: Int, Default: "64", Min: 1, Max: 1 << 20, Plane: Data, Reload: true, Doc: "open DNS connections over TCP for one address (IPv6: one /56)"},
	{Name: "DNS_APEX_A", Plane: Data, Reload: true, Doc: "IPv4 address at the zone's apex"},
	{Name: "DNS_APEX_AAAA", Plane: Data, Reload: true, Doc: "IPv6 address at the zone's apex"},
	{Name: "DNS_APEX_NS", Plane: Data, Reload: true, Doc: "name server at the zone's apex, and the SOA's MNAME"},
	{Name: "DNS_APEX_SOA_RNAME", Plane: Data, Reload: true, Doc: "the SOA's RNAME; unset: hostmaster.<zone>"},
	{Name: "DNS_UPDATE_ENABLED", Kind: Bool, Default: "0", Plane: Both, Doc: "take DNS UPDATE and mint TSIG keys"},
	{Name: "DNS_NSID", Plane: Data, Reload: true, Doc: "text of the NSID option (RFC 5001); unset: none"},
	{Name: "RRL_RATE", Kind: Int, Default: "200", Min: 0, Max: maxInt, Plane: Data, Reload: true, Doc: "UDP answers a second for one prefix, name and kind without a cookie, beyond it moved to TCP; 0: off"},
	{Name: "UPDATE_PREREQUISITES", Kind: Enum, Values: []string{"auto", "on", "off"}, Default: "auto", Plane: Data, Reload: true, Doc: "evaluate RFC 2136 prerequisites; auto: for keys that an operator made"},
	{Name: "UDP_ENGINE", Kind: Enum, Values: []string{"gnet", "xdp"}, Default: "gnet", Plane: Data, Doc: "how UDP is read: by gnet's event loops, or on XDP_INTERFACES by AF_XDP beside them"},
	{Name: "XDP_INTERFACES", Kind: List, Plane: Data, Doc: "network interfaces for UDP_ENGINE=xdp, 16 at most; where it cannot run, ordinary sockets answer and the log says why"},
	{Name: "XDP_MODE", Kind: Enum, Values: []string{"auto", "native", "generic"}, Default: "auto", Plane: Data, Doc: "where the XDP program is attached: in the driver, in the network stack; auto: the first that works"},
	{Name: "DNS_LOOPS", Kind: Int, Default: "0", Min: 0, Max: 1024, Plane: Data, Doc: "event loops for each address; 0: one a core"},

	// Limits of records.
	{Name: "MAX_TTL", Kind: Int, Default: "86400", Min: 0, Max: ttlMaxRR, Plane: Both, Reload: true, Doc: "longest life in seconds that a writer may ask for; 0: no limit"},
	{Name: "MAX_VALUE_BYTES", Kind: Int, Default: "2048", Min: 0, Max: 65535, Plane: Both, Reload: true, Doc: "longest value; 0: no limit of its own"},
	{Name: "MAX_VALUES_PER_NAME", Kind: Int, Default: "64", Min: 0, Max: 65535, Plane: Both, Reload: true, Doc: "values at one name; 0: no limit of its own"},

	// Claims.
	{Name: "CLAIM_PROVIDER", Kind: Bool, Default: "1", Plane: Both, Reload: true, Doc: "take claims for any recipient"},
	{Name: "RECEIVER_CLAIM_NOTIFICATIONS", Kind: Bool, Default: "0", Plane: Both, Reload: true, Doc: "take claims for registered users"},
	{Name: "CLAIM_MAX_TTL", Kind: Int, Default: "86400", Lenient: true, Min: -maxInt, Max: ttlMaxRR, Plane: Data, Reload: true, Doc: "longest life of a claim in seconds; 0 or less: no limit"},
	{Name: "CLAIM_RATE_PER_USER_PER_SEC", Kind: Float, Default: "0.5", Lenient: true, Min: -maxInt, Max: maxInt, Plane: Data, Reload: true, Doc: "claims a second for one recipient; 0 or less: no limit"},
	{Name: "CLAIM_RATE_BURST", Kind: Float, Default: "30", Lenient: true, Min: -maxInt, Max: maxInt, Plane: Data, Reload: true, Doc: "burst of that; 0 or less: no limit"},
	{Name: "CLAIM_WORKERS", Kind: Int, Default: "0", Min: 0, Max: 1024, Plane: Data, Doc: "threads that check claims' signatures; 0: half the cores, at least one"},

	// HTTP.
	{Name: "HTTP_HOST", Kind: List, Default: "0.0.0.0,::", Plane: Control, Doc: "addresses to answer HTTP on"},
	{Name: "HTTP_PORT", Kind: Int, Default: "8053", Min: 0, Max: portMax, Plane: Control, Doc: "port for HTTP"},
	{Name: "OPERATOR_TOKEN", Plane: Control, Secret: true, Reload: true, Aliases: []string{"HTTP_TOKEN"}, Doc: "the operator's bearer token"},
	{Name: "AUTH_MODE", Kind: Enum, Values: []string{"open", "legacy", "multi-tenant"}, Plane: Control, Doc: "who may write over HTTP; unset: legacy with an operator token, else open"},
	{Name: "ALLOW_OPEN_PUBLIC_BIND", Kind: Bool, Default: "0", Plane: Control, Doc: "permit AUTH_MODE=open on an address that is not loopback"},
	{Name: "HTTP_RATE", Kind: Float, Default: "10", Min: 0, Max: maxInt, Plane: Control, Reload: true, Doc: "requests a second and address to /v1/records and /v1/sync; 0: no limit"},
	{Name: "HTTP_BURST", Kind: Float, Default: "100", Min: 0, Max: maxInt, Plane: Control, Reload: true, Doc: "burst of HTTP_RATE; 0: no limit"},
	{Name: "HTTP_MAX_CONCURRENCY", Kind: Int, Default: "64", Min: 1, Max: 1 << 20, Plane: Control, Doc: "requests worked on at once, beyond it 503"},
	{Name: "HTTP_MAX_CONNECTIONS", Kind: Int, Default: "16384", Min: 1, Max: 1 << 24, Plane: Control, Doc: "open HTTP connections"},
	{Name: "TLS_CERT", Plane: Control, Doc: "certificate chain in PEM; with TLS_KEY the node speaks HTTPS itself"},
	{Name: "TLS_KEY", Plane: Control, Doc: "private key of TLS_CERT in PEM"},
	{Name: "ACME_DOMAINS", Kind: List, Plane: Control, Doc: "host names to get a certificate for from an ACME server (RFC 8555), in place of TLS_CERT; that server must reach this node's HTTPS at port 443"},
	{Name: "ACME_EMAIL", Plane: Control, Doc: "address for the ACME account; unset: none"},
	{Name: "ACME_CA", Default: "https://acme-v02.api.letsencrypt.org/directory", Plane: Control, Doc: "directory URL of the ACME server; its terms of service are accepted by setting ACME_DOMAINS"},
	{Name: "ACME_CA_ROOT", Plane: Control, Doc: "PEM file with the roots that a private ACME server's own certificate is checked against"},
	{Name: "TRUSTED_PROXIES", Kind: List, Plane: Control, Reload: true, Doc: "addresses or prefixes whose X-Forwarded-For is believed"},

	// Registration.
	{Name: "REGISTRATION_ENABLED", Kind: Bool, Default: "0", Plane: Control, Doc: "self-service registration (needs AUTH_MODE=multi-tenant and NODE_HOSTNAME)"},
	{Name: "REGISTRATION_ALLOWLIST", Kind: List, Plane: Control, Reload: true, Doc: "domains whose subjects may register; empty: all"},
	{Name: "REGISTRATION_TOKEN_TTL_SECONDS", Kind: Int, Default: "7776000", Min: 0, Max: maxInt, Plane: Control, Reload: true, Doc: "life of tokens and TSIG keys; 0: no end"},
	{Name: "REGISTRATION_ISSUED_RATE_PER_SEC", Kind: Float, Default: "10", Min: -maxInt, Max: maxInt, Plane: Control, Reload: true, Doc: "requests a second that a new token allows"},
	{Name: "REGISTRATION_ISSUED_RATE_BURST", Kind: Int, Default: "50", Min: -maxInt, Max: maxInt, Plane: Control, Reload: true, Doc: "burst of that"},
	{Name: "REGISTRATION_ENDPOINT_RATE_PER_SEC", Kind: Float, Default: "0.001388888888888889", Min: 0, Max: maxInt, Plane: Control, Reload: true, Doc: "registration requests a second and address (5 an hour); 0: no limit"},
	{Name: "REGISTRATION_ENDPOINT_RATE_BURST", Kind: Float, Default: "5", Min: 0, Max: maxInt, Plane: Control, Reload: true, Doc: "burst of that; 0: no limit"},
	{Name: "TSIG_TIGHT_SCOPE", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "new keys write their own names only"},
	{Name: "TSIG_LOOSE_SCOPE", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "new keys write the whole zone"},
	{Name: "TOKEN_DB_PATH", Plane: Control, Doc: "the reference's token database, for the import"},
	{Name: "TSIG_DB_PATH", Plane: Control, Doc: "the reference's TSIG database, for the import"},

	// Heartbeat.
	{Name: "HEARTBEAT_ENABLED", Kind: Bool, Default: "0", Plane: Control, Doc: "announce this node and collect others"},
	{Name: "HEARTBEAT_SELF_ENDPOINT", Plane: Control, Doc: "this node's public URL, http(s)://host[:port]"},
	{Name: "HEARTBEAT_OPERATOR_KEY_PATH", Plane: Control, Doc: "file with the operator's Ed25519 seed, 32 bytes or 64 hex digits"},
	{Name: "HEARTBEAT_SEEDS", Kind: List, Plane: Control, Reload: true, Doc: "zones to ask for heartbeats"},
	{Name: "HEARTBEAT_DNS_RESOLVERS", Kind: List, Plane: Control, Reload: true, Doc: "resolvers, IP or IP:port; empty: the system's"},
	{Name: "HEARTBEAT_DNSSEC_REQUIRED", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "believe only answers with the AD bit"},
	{Name: "HEARTBEAT_INTERVAL_SECONDS", Kind: Float, Default: "300", Min: 0.1, Max: yearSec, Plane: Control, Reload: true, Doc: "time between two rounds; more than 75 counts as 75, so that no reader finds a heartbeat stale"},
	{Name: "HEARTBEAT_TTL_SECONDS", Kind: Int, Default: "86400", Min: 1, Max: 30 * 86400, Plane: Control, Reload: true, Doc: "life of the own heartbeat"},
	{Name: "HEARTBEAT_MAX_PEERS", Kind: Int, Default: "25", Min: 0, Max: 10000, Plane: Control, Reload: true, Doc: "zones asked in one round"},
	{Name: "HEARTBEAT_RETENTION_HOURS", Kind: Float, Default: "72", Min: 0, Max: 1e6, Plane: Control, Reload: true, Doc: "how long a peer unheard of is kept"},
	{Name: "HEARTBEAT_SEEN_MAX_ROWS", Kind: Int, Default: "10000", Min: 1, Max: 1e7, Plane: Control, Doc: "peers remembered at most"},
	{Name: "HEARTBEAT_DB_PATH", Plane: Control, Doc: "the reference's seen store, for the import"},
	{Name: "HEARTBEAT_VERSION", Plane: Control, Doc: "version text in the own heartbeat; unset: the build's"},
	{Name: "HEARTBEAT_FEED", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "offer the nodes heard at /feed.json, in the aggregator's format"},
	{Name: "HEARTBEAT_PUBLIC_SEED_URLS", Kind: List, Plane: Control, Reload: true, Doc: "HTTPS lists of seed zones; none is built in"},
	{Name: "HEARTBEAT_PUBLIC_SEED_URLS_DISABLED", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "do not fetch those lists"},

	// Cluster.
	{Name: "CLUSTER_FILE", Default: "/var/lib/dmp/cluster.json", Plane: Control, Aliases: []string{"CLUSTER_MANIFEST_PATH"}, Doc: "cluster manifest or peer file"},
	{Name: "NODE_ID", Plane: Control, Doc: "this node's id in the cluster"},
	{Name: "SYNC_PEERS", Kind: List, Plane: Control, Reload: true, Doc: "URLs of the cluster's other nodes"},
	{Name: "SYNC_PEER_TOKEN", Plane: Control, Secret: true, Reload: true, Doc: "token shared by the cluster; without it /v1/sync answers 403"},
	{Name: "SYNC_PEER_TOKENS_PREVIOUS", Kind: List, Plane: Control, Secret: true, Reload: true, Doc: "tokens that peers may still show while SYNC_PEER_TOKEN is exchanged"},
	{Name: "SYNC_INTERVAL", Kind: Float, Default: "10", Min: 0.05, Max: yearSec, Plane: Control, Reload: true, Aliases: []string{"SYNC_INTERVAL_SECONDS"}, Doc: "seconds between two pulls from a reference peer"},
	{Name: "SYNC_OPERATOR_SPK", Kind: Hex32, Lenient: true, Plane: Control, Reload: true, Doc: "the cluster operator's Ed25519 public key"},
	{Name: "SYNC_SELF_ENDPOINT", Plane: Control, Doc: "this node's URL among the peers"},
	{Name: "SYNC_NATIVE", Kind: Enum, Values: []string{"tls", "clear", "off"}, Default: "tls", Plane: Control, Reload: true, Doc: "native replication with nodes of this kind: over TLS alone, also in clear text (private networks), or not at all"},
	{Name: "SYNC_PADDING", Kind: Bool, Default: "0", Plane: Control, Reload: true, Doc: "pad the frames of native replication to powers of two"},
	{Name: "SYNC_PINS", Kind: List, Plane: Control, Reload: true, Doc: "peers' keys: URL=base64 SHA-256 of the SPKI"},
}

// other are names with the prefix DMP_ that are no settings of a node and are let pass: a client's, an installer's, the tests',
// and those that the reference still parses although nothing reads them.
var other = []string{
	"CONFIG", // the TOML file itself
	"CONFIG_HOME", "TOKENS_HOME", "PASSPHRASE", "NEW_PASSPHRASE", "PASSPHRASE_OVERRIDE_VERIFY", "PROVIDER_DNS_PORT", "ALLOW_SYSTEM_DNS_FALLBACK",
	"KEEP_SYSTEMD_RESOLVED", "IMAGE_TAG",
	"HEARTBEAT_SUBMIT_RATE_PER_SEC", "HEARTBEAT_SUBMIT_BURST", "HEARTBEAT_SEEN_RATE_PER_SEC", "HEARTBEAT_SEEN_BURST", "REGISTRATION_RATE",
	"HEARTBEAT_GOSSIP_LIMIT", "CLAIM_MAX_AGE_SECONDS", "NODE_OPERATOR_KEY_PATH",
	"HANDOFF", "TEST_CLOCK", "KILLPOINT", "KILLPOINT_ARMED", "VECTORS_UPSTREAM", "TEST_BIN",
}

var byName = func() map[string]*Setting {
	m := make(map[string]*Setting, len(settings))
	for i := range settings {
		m[settings[i].Name] = &settings[i]
	}
	return m
}()

// Settings lists the table in its order; the slice is the caller's.
func Settings() []Setting { return append([]Setting(nil), settings...) }
