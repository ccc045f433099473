package record

// Refusal is why a DMP record is not accepted; Accepted is none.
type Refusal uint8

const (
	Accepted      Refusal = iota
	BadPrefix             // of another type or version
	BadLength             // text, blob or body too short or too long
	BadBase64             //
	BadMagic              //
	BadDomain             // length 0 or too long, cut, not UTF-8, or with a control character
	BadSlot               // above 9
	BadTrailing           // bytes behind the last field
	BadTimes              // exp not after ts, or a time of 2^63 or more
	BadSignature          // or a key of low order
	NotYet                // ts too far ahead
	Expired               //
	LivesTooLong          // exp too far ahead
	BadField              // a field that is cut, of a length that is not allowed, or not the text it must be
	BadCount              // a number of items, or one of them, out of range
	BadName               // not a DNS name of letters, digits and hyphens
	BadEndpoint           // not the URL of a node that may be public
	BadDuplicate          // an item that may be there once
	BadKey                // keys that must differ, or that is not the pinned one
	BadSubject            // not the name that the reader asked for
	TooOld                // older than the reader takes
	BadChecksum           // beyond repair
	BadOwner              // text that is not DMP's at an owner name that is, or of another type than the name
	BadType               // DMP text of a type that does not travel between nodes
	refusalsCount         //
)

var refusals = [refusalsCount]string{"accepted", "not a record of this type", "a length that is not allowed", "not base64", "another magic", "a domain that is not allowed",
	"a slot above 9", "trailing bytes", "times that do not fit", "a wrong signature", "a time in the future", "expired", "a life that is too long",
	"a field that is not allowed", "a count out of range", "not a DNS name", "an endpoint that is not allowed", "a duplicate", "another key", "another subject",
	"too old", "a wrong checksum", "at a name that is not one of its type's", "a type that does not replicate"}

func (r Refusal) Error() string { return refusals[r] }
