package stats

import (
	"fmt"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// Kind is a metric's type.
type Kind uint8

const (
	KindCounter Kind = iota
	KindGauge
	KindHistogram // one row a bucket, then the sum
)

// Row is one word of a shard.
type Row struct {
	Name   string // of the metric
	Labels string // as Prometheus writes them, without braces
	Kind   Kind
	Help   string
	Le     string  // of a histogram's bucket; "sum" for its sum
	Scale  float64 // what the word is divided by when it is shown, 0 for 1
}

var table []Row

// Histogram is a run of rows: buckets, then the sum.
type Histogram struct {
	first   Counter
	buckets int
	lowest  uint64
}

func add(r Row) Counter {
	table = append(table, r)
	return Counter(len(table) - 1)
}

func counter(name, labels, help string) Counter {
	return add(Row{Name: name, Labels: labels, Kind: KindCounter, Help: help})
}

// seconds is a counter of nanoseconds that is shown in seconds.
func seconds(name, help string) Counter {
	return add(Row{Name: name, Kind: KindCounter, Help: help, Scale: 1e9})
}

func gauge(name, labels, help string) Counter {
	return add(Row{Name: name, Labels: labels, Kind: KindGauge, Help: help})
}

func histogram(name, labels, help string, lowest uint64, buckets int, scale float64) Histogram {
	h := Histogram{first: Counter(len(table)), buckets: buckets, lowest: lowest}
	for i := range buckets {
		le := "+Inf"
		if i < buckets-1 {
			le = fmt.Sprint(float64(lowest<<i) / scale)
		}
		add(Row{Name: name, Labels: labels, Kind: KindHistogram, Help: help, Le: le, Scale: scale})
	}
	add(Row{Name: name, Labels: labels, Kind: KindHistogram, Help: help, Le: "sum", Scale: scale})
	return h
}

// labelled makes one counter for each value of a label.
func labelled(name, label, help string, values ...string) []Counter {
	cs := make([]Counter, len(values))
	for i, v := range values {
		cs[i] = counter(name, label+`="`+v+`"`, help)
	}
	return cs
}

// Transports, in the order of what is counted by transport.
const (
	UDP = iota
	TCP
	transports
)

var transportNames = [transports]string{"udp", "tcp"}

func perTransport(f func(labels string) Counter) (cs [transports]Counter) {
	for i, name := range transportNames {
		cs[i] = f(`transport="` + name + `"`)
	}
	return cs
}

// Outcomes of dmp_dns_queries_total beside the response codes: the reference's names and labels, one count a message
// (dns.md 12).
var (
	rcodeNames = [...]string{"noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth", "notzone", "badvers"}

	outcomes    = labelled("dmp_dns_queries_total", "outcome", "DNS messages by outcome.", rcodeNames[:]...)
	RateLimited = counter("dmp_dns_queries_total", `outcome="rate_limited"`, "DNS messages by outcome.")
	Malformed   = counter("dmp_dns_queries_total", `outcome="malformed"`, "DNS messages by outcome.")
	TSIGFailed  = counter("dmp_dns_queries_total", `outcome="tsig_failed"`, "DNS messages by outcome.")

	Records = gauge("dmp_records", "", "Live records.")
)

// Outcome gives the counter of a response code; 16 is BADVERS.
func Outcome(rcode uint16) Counter {
	switch {
	case rcode == 16:
		return outcomes[len(outcomes)-1]
	case int(rcode) < len(outcomes)-1:
		return outcomes[rcode]
	}
	return outcomes[2]
}

// Series of our own.
var (
	Messages   = perTransport(func(l string) Counter { return counter("dmpd_dns_messages_total", l, "DNS messages read.") })
	Responses  = perTransport(func(l string) Counter { return counter("dmpd_dns_responses_total", l, "DNS responses sent.") })
	Truncated  = counter("dmpd_dns_truncated_total", "", "Responses that did not fit a datagram and were sent with TC.")
	Batches    = counter("dmpd_dns_udp_batches_total", "", "Calls of recvmmsg that brought datagrams.")
	Joined     = counter("dmpd_dns_udp_joined_total", "", "Responses that the kernel got in one message with others of their length to the same port (UDP_SEGMENT).")
	SendFailed = counter("dmpd_dns_udp_send_errors_total", "", "Datagrams that the system refused to send.")

	XDPQueues          = gauge("dmpd_dns_xdp_queues", "", "Receive queues served by AF_XDP.")
	XDPInterfaces      = gauge("dmpd_dns_xdp_interfaces", `state="on"`, "Interfaces that AF_XDP was configured for, by state.")
	XDPFallback        = gauge("dmpd_dns_xdp_interfaces", `state="sockets"`, "Interfaces that AF_XDP was configured for, by state.")
	XDPBatches         = counter("dmpd_dns_xdp_batches_total", "", "Batches of frames taken from AF_XDP queues.")
	XDPResponses       = counter("dmpd_dns_xdp_responses_total", "", "Responses sent by AF_XDP; dmpd_dns_responses_total holds them, too.")
	XDPDroppedLength   = counter("dmpd_dns_xdp_dropped_total", `reason="length"`, "Frames of AF_XDP queues that no message was read from.")
	XDPDroppedChecksum = counter("dmpd_dns_xdp_dropped_total", `reason="checksum"`, "Frames of AF_XDP queues that no message was read from.")
	XDPDroppedRoom     = counter("dmpd_dns_xdp_dropped_total", `reason="room"`, "Frames of AF_XDP queues that no message was read from.")

	opcodes = labelled("dmpd_dns_opcode_total", "opcode", "DNS messages by opcode.", "query", "notify", "update", "other")
	qtypes  = labelled("dmpd_dns_qtype_total", "qtype", "Queries by type.", "txt", "a", "aaaa", "ns", "soa", "any", "other")

	// Dropped messages were not answered at all.
	DroppedResponse    = counter("dmpd_dns_dropped_total", `reason="response"`, "DNS messages dropped without an answer.")
	DroppedShort       = counter("dmpd_dns_dropped_total", `reason="short"`, "DNS messages dropped without an answer.")
	DroppedRate        = counter("dmpd_dns_dropped_total", `reason="rate"`, "DNS messages dropped without an answer.")
	DroppedShutdown    = counter("dmpd_dns_dropped_total", `reason="shutdown"`, "DNS messages dropped without an answer.")
	DroppedFormErrRate = counter("dmpd_dns_dropped_total", `reason="formerr_rate"`, "DNS messages dropped without an answer.")

	RRLSlipped    = counter("dmpd_dns_rrl_slipped_total", "", "UDP answers replaced by a TC response to move a busy prefix to TCP.")
	CookieGood    = counter("dmpd_dns_cookies_total", `result="valid"`, "Server cookies seen (RFC 7873).")
	CookieBad     = counter("dmpd_dns_cookies_total", `result="invalid"`, "Server cookies seen (RFC 7873).")
	CookieNew     = counter("dmpd_dns_cookies_total", `result="client_only"`, "Server cookies seen (RFC 7873).")
	TCPOpen       = gauge("dmpd_dns_tcp_connections", "", "Open TCP connections.")
	TCPAccepted   = counter("dmpd_dns_tcp_accepted_total", "", "TCP connections accepted.")
	TCPRefused    = counter("dmpd_dns_tcp_refused_total", "", "TCP connections closed at once, over a cap.")
	TCPTimedOut   = counter("dmpd_dns_tcp_timeouts_total", "", "TCP connections closed at a deadline.")
	TCPSlowReader = counter("dmpd_dns_tcp_slow_readers_total", "", "TCP connections closed since they did not read.")
	TCPListening  = gauge("dmpd_dns_tcp_listening", "", "1 while every configured address is listened on over TCP.")

	// Faults: one row for each reason that a message is refused for.
	faults = func() []Counter {
		cs := make([]Counter, wire.Faults)
		for f := range wire.Faults {
			cs[f] = counter("dmpd_dns_faults_total", `fault="`+f.Label()+`"`, "DNS messages refused, by reason.")
		}
		return cs
	}()

	UpdateAdds      = counter("dmpd_update_operations_total", `operation="add"`, "UPDATE operations applied.")
	UpdateDeletes   = counter("dmpd_update_operations_total", `operation="delete"`, "UPDATE operations applied.")
	UpdateWaiting   = gauge("dmpd_update_waiting", "", "UPDATEs that wait for their sync.")
	UpdateShed      = counter("dmpd_update_shed_total", "", "UPDATEs answered SERVFAIL since too many waited.")
	ClaimsAccepted  = counter("dmpd_claims_total", `outcome="accepted"`, "Claims without TSIG, by outcome.")
	ClaimsRefused   = counter("dmpd_claims_total", `outcome="refused"`, "Claims without TSIG, by outcome.")
	ClaimsForged    = counter("dmpd_claims_total", `outcome="forged"`, "Claims without TSIG, by outcome.")
	ClaimsLimited   = counter("dmpd_claims_total", `outcome="rate_limited"`, "Claims without TSIG, by outcome.")
	ClaimsShed      = counter("dmpd_claims_total", `outcome="shed"`, "Claims without TSIG, by outcome.")
	ClaimsDuplicate = counter("dmpd_claims_total", `outcome="duplicate"`, "Claims without TSIG, by outcome.")

	ResponseSize = [transports]Histogram{
		histogram("dmpd_dns_response_bytes", `transport="udp"`, "Size of DNS responses.", 32, 8, 1),
		histogram("dmpd_dns_response_bytes", `transport="tcp"`, "Size of DNS responses.", 32, 12, 1),
	}
	// Latency of what does not wait is measured by batch: from a batch's read to its send. In nanoseconds, shown in seconds.
	Latency = [transports]Histogram{
		histogram("dmpd_dns_latency_seconds", `transport="udp"`, "Time from reading a batch to sending its answers.", 4096, 16, 1e9),
		histogram("dmpd_dns_latency_seconds", `transport="tcp"`, "Time from reading a batch to sending its answers.", 4096, 16, 1e9),
	}
	UpdateLatency = histogram("dmpd_update_latency_seconds", "", "Time from reading an UPDATE to its durable answer.", 65536, 18, 1e9)
	SyncLatency   = histogram("dmpd_log_sync_seconds", "", "Time of a sync of the rows log.", 65536, 18, 1e9)

	Names         = gauge("dmpd_store_names", "", "Names with a live record.")
	StoreBytes    = gauge("dmpd_store_bytes", "", "Bytes of records held.")
	ArenaBytes    = gauge("dmpd_store_arena_bytes", "", "Bytes mapped for records.")
	Tombstones    = gauge("dmpd_store_tombstones", "", "Deleted records that are remembered.")
	Expired       = counter("dmpd_store_expired_total", "", "Records swept after their end.")
	LogBytes      = gauge("dmpd_log_bytes", "", "Bytes of the rows log that no snapshot covers.")
	SnapshotBytes = gauge("dmpd_snapshot_bytes", "", "Bytes of the newest rows snapshot.")
	Commits       = counter("dmpd_commits_total", "", "Groups of changes made durable.")
	CommitRows    = counter("dmpd_commit_rows_total", "", "Rows in those groups.")
	SyncFailed    = counter("dmpd_log_sync_errors_total", "", "Groups dropped since they could not be made durable.")
	DiskLow       = gauge("dmpd_disk_low", "", "1 while writes are refused for want of disk space.")
	Serial        = gauge("dmpd_zone_serial", "", "SOA serial of the served zone.")
	KeysLive      = gauge("dmpd_tsig_keys", "", "TSIG keys known.")
	RequestsTaken = counter("dmpd_requests_taken_total", "", "Records requests taken from the control plane.")
	CPUTime       = seconds("dmpd_dataplane_cpu_seconds_total", "CPU time of the data plane, user and system.")
	GCTime        = seconds("dmpd_dataplane_gc_cpu_seconds_total", "CPU time of its garbage collector.")
	GCCycles      = counter("dmpd_dataplane_gc_cycles_total", "", "Cycles of its garbage collector.")
	HeapBytes     = gauge("dmpd_dataplane_heap_bytes", "", "Bytes of objects on its Go heap; records are beside it.")
	GCPauses      = histogram("dmpd_dataplane_gc_pause_seconds", "", "Times for which its garbage collector stopped everything.", 8192, 16, 1e9)
	StartedSec    = gauge("dmpd_dataplane_start_time_seconds", "", "When the data plane started, Unix time.")
)

// Fault gives the counter of a fault.
func Fault(f wire.Fault) Counter { return faults[f] }

// Opcode gives the counter of an opcode (RFC 1035 4.1.1).
func Opcode(op uint8) Counter {
	switch op {
	case 0:
		return opcodes[0]
	case 4:
		return opcodes[1]
	case 5:
		return opcodes[2]
	}
	return opcodes[3]
}

// Qtype gives the counter of a query's type.
func Qtype(t uint16) Counter {
	switch t {
	case 16:
		return qtypes[0]
	case 1:
		return qtypes[1]
	case 28:
		return qtypes[2]
	case 2:
		return qtypes[3]
	case 6:
		return qtypes[4]
	case 255:
		return qtypes[5]
	}
	return qtypes[6]
}
