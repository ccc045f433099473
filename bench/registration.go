package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	forgedPerSecond = 10_000
	forgedPerAddr   = 5 // as many as an address may send before the node's limit refuses the rest unseen
	forgers         = 32
	honestEvery     = time.Second
	honestPatience  = 10 * time.Second
)

// challenge is what GET /v1/registration/challenge answers (http.md 7.2).
type challenge struct {
	Challenge string `json:"challenge"`
	Node      string `json:"node"`
}

// confirmation is a body for tsig-confirm; the signature is right if key is not nil.
func (c challenge) confirmation(subject string, key ed25519.PrivateKey) []byte {
	spk, signature := make([]byte, ed25519.PublicKeySize), make([]byte, ed25519.SignatureSize)
	if key == nil {
		_, _ = rand.Read(signature)
		_, _ = rand.Read(spk)
	} else {
		raw, _ := hex.DecodeString(c.Challenge) // a wrong one is refused
		payload := append(append(append(raw, subject...), c.Node...), 1)
		copy(spk, key.Public().(ed25519.PublicKey))
		copy(signature, ed25519.Sign(key, payload))
	}
	return fmt.Appendf(nil, `{"subject":%q,"ed25519_spk":"%x","challenge":%q,"signature":"%x"}`, subject, spk, c.Challenge, signature)
}

// registrations measures whether honest ones get through a flood of forged ones, and what it costs the node's two processes in memory.
func (s *Suite) registrations(sc *scenario, f *field, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	server := &Server{Name: "dmpd"}
	if server.Addr, err = freePort(); err != nil {
		return err
	}
	if err := server.spawnNode(f, dir, "DMP_REGISTRATION_ENABLED=1"); err != nil {
		return err
	}
	defer server.Stop()
	if err := server.healthy(); err != nil {
		return err
	}
	at := server.http
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var sent, refused, broken atomic.Int64
	var flood sync.WaitGroup
	before, beforeFiles, err := server.PSS()
	if err != nil {
		return err
	}
	began := time.Now()
	for i := range forgers {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				due := began.Add(time.Duration(n) * forgers * (forgedPerAddr - 1) * time.Second / forgedPerSecond)
				if wait := time.Until(due); wait > 0 {
					time.Sleep(wait)
				}
				k := n*forgers + i
				ok, err := forge(at, netip.AddrFrom4([4]byte{127, byte(16 + k>>16), byte(k >> 8), byte(k)}))
				sent.Add(forgedPerAddr - 1)
				refused.Add(int64(ok))
				if err != nil {
					broken.Add(1)
				}
			}
		})
	}
	var took []time.Duration
	var lost []error
	for i := 0; time.Since(began) < s.Flood; i++ {
		start := time.Now()
		if err := register(at, netip.AddrFrom4([4]byte{127, 9, byte(i >> 8), byte(i)}), fmt.Sprintf("honest%d@%s", i, f.zone.Name)); err != nil {
			lost = append(lost, err)
		}
		took = append(took, time.Since(start))
		time.Sleep(time.Until(start.Add(honestEvery)))
	}
	elapsed := time.Since(began)
	pss, files, err := server.PSS()
	cancel()
	flood.Wait()
	if err != nil {
		return err
	}
	slices.Sort(took)
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| forged / s | refused of them | seconds | honest ones lost | honest p50 ms | worst | memory before, MB | after |\n|---|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(s.Out, "| %.0f | %d of %d | %.0f | %d of %d | %.3g | %.3g | %d | %d |\n", float64(sent.Load())/elapsed.Seconds(), refused.Load(), sent.Load(), elapsed.Seconds(),
		len(lost), len(took), took[len(took)/2].Seconds()*1000, took[len(took)-1].Seconds()*1000, (before-beforeFiles)>>20, (pss-files)>>20)
	s.record("dmpd", map[string]any{"forged": sent.Load(), "refused": refused.Load(), "seconds": elapsed.Seconds(), "honest": len(took), "honest_lost": len(lost),
		"honest_p50_ms": three(took[len(took)/2].Seconds() * 1000), "honest_worst_ms": three(took[len(took)-1].Seconds() * 1000), "memory_before_bytes": before - beforeFiles, "memory_bytes": pss - files})
	fmt.Fprintf(s.Progress, "  %d connections of forgers were cut or refused\n", broken.Load())
	if len(lost) > 0 {
		return fmt.Errorf("bench: %d of %d honest registrations were lost, the first: %w", len(lost), len(took), lost[0])
	}
	return os.RemoveAll(dir)
}

func dialFrom(from netip.Addr) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: honestPatience}
}

// forge asks for a challenge as anybody may, and sends forged confirmations of it. It gives how many were refused.
func forge(at netip.AddrPort, from netip.Addr) (refused int, err error) {
	c, err := dialFrom(from).Dial("tcp4", at.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(honestPatience))
	in := bufio.NewReader(c)
	if _, err := io.WriteString(c, "GET /v1/registration/challenge HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, err
	}
	var ch challenge
	err = json.NewDecoder(r.Body).Decode(&ch)
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	if err != nil {
		return 0, err
	}
	var out []byte
	for range forgedPerAddr - 1 {
		body := ch.confirmation("mallory@mesh.test", nil)
		out = fmt.Appendf(out, "POST /v1/registration/tsig-confirm HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(body))
		out = append(out, body...)
	}
	if _, err := c.Write(out); err != nil {
		return 0, err
	}
	for range forgedPerAddr - 1 {
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return refused, err
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if r.StatusCode >= 400 {
			refused++
		}
	}
	return refused, nil
}

// register is what an honest client does.
func register(at netip.AddrPort, from netip.Addr, subject string) error {
	transport := &http.Transport{DialContext: dialFrom(from).DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: honestPatience}
	r, err := client.Get("http://" + at.String() + "/v1/registration/challenge")
	if err != nil {
		return err
	}
	var ch challenge
	err = json.NewDecoder(r.Body).Decode(&ch)
	r.Body.Close()
	if err != nil || r.StatusCode != http.StatusOK {
		return fmt.Errorf("challenge: %s %v", r.Status, err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	r, err = client.Post("http://"+at.String()+"/v1/registration/tsig-confirm", "application/json", bytes.NewReader(ch.confirmation(subject, key)))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return fmt.Errorf("tsig-confirm: %s %s %v", r.Status, b, err)
	}
	return nil
}
