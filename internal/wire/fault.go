package wire

// Fault is why a message is refused: a one-byte code that is counter index, log text and reply at once. Hot functions return it as
// itself, since a Fault of OK in an error would not be nil.
type Fault uint8

const (
	OK Fault = iota
	// NotSimple: the fast parser leaves the message to the complete one. It is no refusal.
	NotSimple

	// Dropped without a reply.
	Short    // no header
	Response // QR=1: never reply to a response

	// Malformed (RFC 1035, 2136, 6891): FORMERR.
	BadName
	BadPointer
	BadCount
	BadRR
	TrailingBytes
	BadOPT
	TwoOPT
	TSIGNotLast
	BadTSIG
	NoQuestion
	ManyQuestions
	MetaType
	TooManyRRs

	// Queries.
	BadVersion // BADVERS
	BadOpcode  // NOTIMP
	BadClass   // REFUSED
	OutsideZone
	Transfer

	// UPDATE (RFC 2136 3.1 to 3.4).
	UpdatesOff
	ZoneCount
	ZoneType
	ZoneClass
	NotZone  // an owner outside the zone: NOTZONE
	NotAuth  // not our zone: NOTAUTH
	UpdateRR // class, type, TTL or RDATA that RFC 2136 2.5 does not have
	NotUTF8  // a value that is not UTF-8
	NotPrintable
	NotTXT
	TTLTooLong
	ValueTooLong
	OutOfScope
	NoOperation
	PrereqFailed
	PrereqBad
	RRsetFull
	QuotaFull
	StoreFull
	RRsetTooBig
	WriteFailed
	QueueFull

	// TSIG (RFC 8945 5.2).
	BadKey
	BadSig
	BadTime
	BadTrunc
	KeysUnknown // the key store cannot be read: SERVFAIL, never BADKEY

	// Claims without TSIG (dns.md 8.2).
	ClaimOff
	ClaimOperation
	ClaimOwner
	ClaimRecipient
	ClaimFormat
	ClaimSlot
	ClaimExpired
	ClaimLife
	ClaimMany
	ClaimForged
	ClaimRate
	ClaimPoolFull

	Faults
)

// RCODEs (RFC 1035 4.1.1, RFC 2136 2.2, RFC 6891 9).
const (
	NoError  = 0
	FormErr  = 1
	ServFail = 2
	NXDomain = 3
	NotImp   = 4
	Refused  = 5
	YXDomain = 6
	YXRRSet  = 7
	NXRRSet  = 8
	NotAuthR = 9
	NotZoneR = 10
	BadVers  = 16
)

type faultInfo struct {
	label string // of the metric
	text  string
	rcode uint16
	ede   int16 // RFC 8914 info code, -1 none
}

// EDE codes (RFC 8914 4).
const (
	edeNone         = -1
	edeOther        = 0
	edeNotReady     = 14
	edeProhibited   = 18
	edeNotAuth      = 20
	edeNotSupported = 21
)

var faults = [Faults]faultInfo{
	OK:            {"ok", "no fault", NoError, edeNone},
	NotSimple:     {"not_simple", "left to the complete parser", NoError, edeNone},
	Short:         {"short", "shorter than a header", NoError, edeNone},
	Response:      {"response", "a response", NoError, edeNone},
	BadName:       {"bad_name", "a name that is not well formed", FormErr, edeNone},
	BadPointer:    {"bad_pointer", "a compression pointer that does not go back", FormErr, edeNone},
	BadCount:      {"bad_count", "fewer records than the header counts", FormErr, edeNone},
	BadRR:         {"bad_rr", "a record that ends outside the message", FormErr, edeNone},
	TrailingBytes: {"trailing_bytes", "bytes behind the last record", FormErr, edeNone},
	BadOPT:        {"bad_opt", "an OPT record that is not well formed", FormErr, edeNone},
	TwoOPT:        {"two_opt", "two OPT records", FormErr, edeNone},
	TSIGNotLast:   {"tsig_not_last", "a TSIG record that is not the last one", FormErr, edeNone},
	BadTSIG:       {"bad_tsig", "a TSIG record that is not well formed", FormErr, edeNone},
	NoQuestion:    {"no_question", "no question", FormErr, edeNone},
	ManyQuestions: {"many_questions", "more than one question", FormErr, edeNone},
	MetaType:      {"meta_type", "a type that cannot be asked for", FormErr, edeNone},
	TooManyRRs:    {"too_many_rrs", "more records than a message may have here", FormErr, edeNone},
	BadVersion:    {"bad_version", "an EDNS version that is not spoken here", BadVers, edeNone},
	BadOpcode:     {"bad_opcode", "an opcode that is not served", NotImp, edeNotSupported},
	BadClass:      {"bad_class", "a class that is not served", Refused, edeNotAuth},
	OutsideZone:   {"outside_zone", "a name outside the zone", Refused, edeNotAuth},
	Transfer:      {"transfer", "zone transfers are not served", Refused, edeProhibited},
	UpdatesOff:    {"updates_off", "updates are switched off", Refused, edeProhibited},
	ZoneCount:     {"zone_count", "the zone section has not one entry", FormErr, edeNone},
	ZoneType:      {"zone_type", "the zone section's type is not SOA", FormErr, edeNone},
	ZoneClass:     {"zone_class", "the zone section's class is not IN", NotAuthR, edeNone},
	NotZone:       {"not_zone", "an owner outside the zone", NotZoneR, edeNone},
	NotAuth:       {"not_auth", "a zone that is not served here", NotAuthR, edeNotAuth},
	UpdateRR:      {"update_rr", "an update record that RFC 2136 does not have", FormErr, edeNone},
	NotUTF8:       {"not_utf8", "a value that is not UTF-8", FormErr, edeNone},
	NotPrintable:  {"not_printable", "a value with control characters", Refused, edeProhibited},
	NotTXT:        {"not_txt", "a record that is not TXT", Refused, edeNotSupported},
	TTLTooLong:    {"ttl_too_long", "a TTL above the limit", Refused, edeProhibited},
	ValueTooLong:  {"value_too_long", "a value above the limit", Refused, edeProhibited},
	OutOfScope:    {"out_of_scope", "a name that the key may not change so", Refused, edeProhibited},
	NoOperation:   {"no_operation", "nothing to do", Refused, edeProhibited},
	PrereqFailed:  {"prerequisite", "a prerequisite does not hold", NXRRSet, edeNone},
	PrereqBad:     {"prerequisite_bad", "a prerequisite that RFC 2136 does not have", FormErr, edeNone},
	RRsetFull:     {"rrset_full", "the name holds as many values as it may", Refused, edeProhibited},
	QuotaFull:     {"quota", "the writer has as many records as it may", Refused, edeProhibited},
	StoreFull:     {"store_full", "the node holds as many records as it may", ServFail, edeNotReady},
	RRsetTooBig:   {"rrset_too_big", "the answer would not fit a message", Refused, edeProhibited},
	WriteFailed:   {"write_failed", "the change could not be made durable", ServFail, edeNotReady},
	QueueFull:     {"queue_full", "too many changes wait", ServFail, edeNotReady},
	BadKey:        {"tsig_badkey", "a TSIG key that is not known", NotAuthR, edeNone},
	BadSig:        {"tsig_badsig", "a TSIG MAC that is wrong", NotAuthR, edeNone},
	BadTime:       {"tsig_badtime", "a TSIG time outside the window", NotAuthR, edeNone},
	BadTrunc:      {"tsig_badtrunc", "a TSIG MAC that is too short", NotAuthR, edeNone},
	KeysUnknown:   {"keys_unknown", "the key store cannot be read", ServFail, edeNotReady},

	ClaimOff:       {"claim_off", "claims are not taken here", Refused, edeProhibited},
	ClaimOperation: {"claim_operation", "without TSIG only claims may be added", Refused, edeProhibited},
	ClaimOwner:     {"claim_owner", "not the name of a claim", Refused, edeProhibited},
	ClaimRecipient: {"claim_recipient", "the recipient is not registered here", Refused, edeProhibited},
	ClaimFormat:    {"claim_format", "not a claim", Refused, edeProhibited},
	ClaimSlot:      {"claim_slot", "the claim is for another slot", Refused, edeProhibited},
	ClaimExpired:   {"claim_expired", "the claim's time is over or not yet come", Refused, edeProhibited},
	ClaimLife:      {"claim_life", "the claim lives too long", Refused, edeProhibited},
	ClaimMany:      {"claim_many", "too many claims in one message", Refused, edeProhibited},
	ClaimForged:    {"claim_forged", "the claim's signature is wrong", Refused, edeProhibited},
	ClaimRate:      {"claim_rate", "too many claims", ServFail, edeNotReady},
	ClaimPoolFull:  {"claim_pool_full", "too many claims wait for their check", ServFail, edeNotReady},
}

func (f Fault) Error() string { return faults[f].text }

// Rcode is the reply's response code; 16 is BADVERS.
func (f Fault) Rcode() uint16 { return faults[f].rcode }

// Label names the fault in metrics.
func (f Fault) Label() string { return faults[f].label }

// EDE is the extended error's info code (RFC 8914); ok is false if there is none.
func (f Fault) EDE() (code uint16, ok bool) { return uint16(faults[f].ede), faults[f].ede >= 0 }

// Silent says that the message gets no reply at all.
func (f Fault) Silent() bool { return f == Short || f == Response }
