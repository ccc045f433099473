package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sync"
)

// A challenge is 32 bytes that look random and that only this process can make, so that nothing is kept for those who ask:
//
//	+------------------------------- 16 bytes -------------------------------+---- 16 bytes ----+
//	| AES-256( expiry, Unix s (6) | number (8) | random (2) )                | HMAC-SHA256[:16] |
//	+-------------------------------------------------------------------------+-----------------+
//
// The HMAC covers the block and the node's name. The server's ephemeral X25519 key is derived from all 32 bytes. All three
// keys are made at start and never stored: a restart loses the challenges, as it does in the reference, and a used one cannot come back.
//
// Single use: challenges are numbered, and a used number sets a bit in a ring of usedBits bits. A bit is used again only for the
// number usedBits later, and that number is not given out while the earlier challenge still lives: Issue then says ErrBusy. So no flood,
// of requests or of uses, makes a used challenge usable or an honest one unknown; at worst (280,000 requests a second for a
// minute) new ones wait.
type Challenges struct {
	block  cipher.Block
	macKey []byte
	kdfKey []byte

	mu      sync.Mutex
	next    uint64
	used    []uint64        // usedBits bits
	issued  [lifeSec]uint64 // the first number given out in a second, by second modulo lifeSec
	second  [lifeSec]int64  // the second that the slot speaks of
	random  func([]byte)
	pending uint64 // bits that usedBits stands for; smaller in tests
}

const (
	lifeSec  = 60      // http.md 7.2
	usedBits = 1 << 24 // 2 MiB
)

// Errors of challenges.
var (
	ErrChallenge = errors.New("challenge expired or unknown")
	ErrBusy      = errors.New("auth: too many challenges are open")
)

// Challenge is one that was given out.
type Challenge struct {
	Bytes        [32]byte
	ServerX25519 [32]byte
	ExpiresAtSec int64
}

// NewChallenges makes fresh keys.
func NewChallenges() *Challenges { return newChallenges(usedBits) }

func newChallenges(bits uint64) *Challenges {
	var keys [96]byte
	mustRandom(keys[:])
	block, err := aes.NewCipher(keys[:32])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	return &Challenges{block: block, macKey: keys[32:64], kdfKey: keys[64:], used: make([]uint64, bits/64), random: mustRandom, pending: bits}
}

func mustRandom(b []byte) {
	if _, err := rand.Read(b); err != nil {
		panic(err) // crypto/rand never fails on Linux
	}
}

// Issue makes a challenge for node.
func (c *Challenges) Issue(node string, nowSec int64) (Challenge, error) {
	expiry := nowSec + lifeSec
	number, err := c.number(nowSec)
	if err != nil {
		return Challenge{}, err
	}
	ch := Challenge{ExpiresAtSec: expiry}
	b := ch.Bytes[:]
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(expiry))
	copy(b[:6], head[2:])
	binary.BigEndian.PutUint64(b[6:], number)
	c.random(b[14:16])
	c.block.Encrypt(b[:16], b[:16])
	copy(b[16:], c.mac(b[:16], node))
	copy(ch.ServerX25519[:], c.Ephemeral(ch.Bytes).PublicKey().Bytes())
	return ch, nil
}

// number takes the next number and clears its bit.
func (c *Challenges) number(nowSec int64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := c.next
	for i := range c.second {
		// Challenges of that second live until lifeSec later. A clock that went back only makes this more careful.
		if c.second[i] > nowSec-lifeSec {
			oldest = min(oldest, c.issued[i])
		}
	}
	if c.next-oldest >= c.pending {
		return 0, ErrBusy
	}
	if i := uint64(nowSec) % lifeSec; c.second[i] != nowSec {
		c.second[i], c.issued[i] = nowSec, c.next
	}
	n := c.next
	c.next++
	c.used[n%c.pending/64] &^= 1 << (n % 64)
	return n, nil
}

func (c *Challenges) mac(block []byte, node string) []byte {
	m := hmac.New(sha256.New, c.macKey)
	m.Write(block)
	m.Write([]byte(node))
	return m.Sum(nil)[:16]
}

// Ephemeral derives the server's key of a challenge.
func (c *Challenges) Ephemeral(challenge [32]byte) *ecdh.PrivateKey {
	m := hmac.New(sha256.New, c.kdfKey)
	m.Write(challenge[:])
	k, err := ecdh.X25519().NewPrivateKey(m.Sum(nil))
	if err != nil {
		panic(err) // any 32 bytes are a key
	}
	return k
}

// Consume checks the challenge as the client sent it and uses it up. Only the text that was given out counts: lower-case hex.
func (c *Challenges) Consume(text, node string, nowSec int64) ([32]byte, error) {
	var ch [32]byte
	if len(text) != 64 {
		return ch, ErrChallenge
	}
	if _, err := hex.Decode(ch[:], []byte(text)); err != nil || hex.EncodeToString(ch[:]) != text {
		return ch, ErrChallenge
	}
	if !hmac.Equal(ch[16:], c.mac(ch[:16], node)) {
		return ch, ErrChallenge
	}
	var plain [16]byte
	c.block.Decrypt(plain[:], ch[:16])
	var head [8]byte
	copy(head[2:], plain[:6])
	expiry := int64(binary.BigEndian.Uint64(head[:]))
	number := binary.BigEndian.Uint64(plain[6:14])
	if nowSec >= expiry {
		return ch, ErrChallenge
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if number >= c.next || c.next-number > c.pending {
		return ch, ErrChallenge // its bit belongs to another by now: the clock went back
	}
	word, bit := &c.used[number%c.pending/64], uint64(1)<<(number%64)
	if *word&bit != 0 {
		return ch, ErrChallenge
	}
	*word |= bit
	return ch, nil
}
