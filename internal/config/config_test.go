package config

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func resolve(t *testing.T, environ []string, toml string, flags map[string]string) (*Config, Problems, Problems) {
	t.Helper()
	in := Input{Flags: flags, Environ: append(environ, "PATH=/bin"), ReadFile: func(string) ([]byte, error) {
		if toml == "-" {
			return nil, os.ErrNotExist
		}
		return []byte(toml), nil
	}}
	if toml != "" {
		in.File = "dmpd.toml"
	}
	return Resolve(in)
}

// local is what a node needs to start at all.
const local = "DMP_HTTP_HOST=127.0.0.1"

func TestOrder(t *testing.T) {
	c, _, errs := resolve(t, []string{local, "DMP_DNS_TTL=70", "DMP_DNS_PORT=70", "DMP_MAX_TTL="},
		"dns_ttl = 80\ndns_port = 80\nmax_ttl = 1_000\ndns_host = [\"127.0.0.1\", \"::1\"]\ndns_update_enabled = true\n", map[string]string{"DNS_PORT": "90"})
	if errs != nil {
		t.Fatal(errs)
	}
	for name, want := range map[string]string{"DNS_PORT": "90", "DNS_TTL": "70", "MAX_TTL": "1000", "MAX_VALUE_BYTES": "2048", "DNS_HOST": "127.0.0.1,::1", "DNS_UPDATE_ENABLED": "1"} {
		if got := c.String(name); got != want {
			t.Errorf("%s is %q from %s, want %q", name, got, c.Source(name), want)
		}
	}
	if c.Int("DNS_PORT") != 90 || !c.Bool("DNS_UPDATE_ENABLED") || len(c.List("DNS_HOST")) != 2 || c.Source("DNS_PORT") != "flag --dns-port" {
		t.Errorf("%d, %v, %q, %q", c.Int("DNS_PORT"), c.Bool("DNS_UPDATE_ENABLED"), c.List("DNS_HOST"), c.Source("DNS_PORT"))
	}
}

func TestProblems(t *testing.T) {
	for _, x := range []struct {
		name, environ, toml string
		want                []string // each must stand in the errors
	}{
		{"all at once", "DMP_DNS_PORT=x DMP_MAX_TTL=-1 DMP_DURABILITY=never", "", []string{"DMP_DNS_PORT=\"x\": not a whole number", "DMP_MAX_TTL", "always, interval, os"}},
		{"unknown", "DMP_DNS_PROT=53", "", []string{"DMP_DNS_PROT: no such setting. Did you mean DMP_DNS_PORT?"}},
		{"unknown key", "", "dns_prot = 1", []string{"\"dns_prot\", which is no setting"}},
		{"key in capitals", "", "DNS_PORT = 1", []string{"\"DNS_PORT\", which is no setting"}},
		{"table", "", "[dns]\nport = 1", []string{"has a table"}},
		{"twice", "", "dns_port = 1\ndns_port = 2", []string{"twice"}},
		{"bad toml", "", "dns_port = = 1", []string{"not valid TOML"}},
		{"wrong kind", "", "dns_port = 1979-05-27", []string{"wrong kind"}},
		{"no file", "", "-", []string{"cannot be read"}},
		{"open to the world", "DMP_HTTP_HOST=0.0.0.0", "", []string{"DMP_AUTH_MODE", "on 0.0.0.0"}},
		{"half a certificate", "DMP_TLS_CERT=a.pem", "", []string{"DMP_TLS_KEY"}},
		{"two certificates", "DMP_ACME_DOMAINS=a.test DMP_TLS_CERT=a.pem DMP_TLS_KEY=a.key", "", []string{"DMP_ACME_DOMAINS=\"a.test\"", "Set one of them"}},
		{"ACME names", "DMP_ACME_DOMAINS=192.0.2.1,*.a.test,localhost DMP_ACME_CA=http://ca.test", "", []string{"\"192.0.2.1\"", "\"*.a.test\"", "\"localhost\"", "is no https URL"}},
		{"many ACME names", "DMP_ACME_DOMAINS=" + strings.Repeat("a.test,", acmeDomainsMax) + "b.test", "", []string{"at most 20"}},
		{"not an address", "DMP_DNS_HOST=127.0.0.1,example", "", []string{"DMP_DNS_HOST=\"example\""}},
		{"apex", "DMP_DNS_APEX_A=::1 DMP_DNS_APEX_AAAA=1.2.3.4", "", []string{"not an IPv4", "not an IPv6"}},
		{"zone", "DMP_DOMAIN=a..b", "", []string{"DMP_DOMAIN=\"a..b\": not a domain name"}},
		{"secret", "DMP_OPERATOR_TOKEN=geheim DMP_DNS_PORT=x", "", []string{"DMP_DNS_PORT"}},
		{"NUL", "DMP_DOMAIN=a\x00b", "", []string{"NUL"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			environ := strings.Split(x.environ, " ")
			if !strings.Contains(x.environ, "HTTP_HOST") {
				environ = append(environ, local)
			}
			c, _, errs := resolve(t, environ, x.toml, nil)
			if c != nil || len(errs) == 0 {
				t.Fatal("was taken")
			}
			for _, w := range x.want {
				if !strings.Contains(errs.Error(), w) {
					t.Errorf("%q does not stand in %q", w, errs.Error())
				}
			}
			if strings.Contains(errs.Error(), "geheim") {
				t.Error("shows a secret")
			}
		})
	}
}

func TestLenient(t *testing.T) {
	c, warnings, errs := resolve(t, []string{local, "DMP_CLAIM_RATE_BURST=many", "DMP_SYNC_INTERVAL=3", "DMP_SYNC_INTERVAL_SECONDS=4", "DMP_PASSPHRASE=x", "DMP_HTTP_TOKEN=old"}, "", nil)
	if errs != nil {
		t.Fatal(errs)
	}
	if c.Float("CLAIM_RATE_BURST") != 30 || c.Float("SYNC_INTERVAL") != 3 || c.String("OPERATOR_TOKEN") != "old" || c.AuthMode() != "legacy" {
		t.Error(c.values)
	}
	if !strings.Contains(warnings.Error(), "CLAIM_RATE_BURST") || !strings.Contains(warnings.Error(), "SYNC_INTERVAL_SECONDS") {
		t.Error(warnings)
	}
}

// TestHeartbeatWarnings: what the heartbeat will leave out is said, and keeps nothing from running.
func TestHeartbeatWarnings(t *testing.T) {
	base := []string{local, "DMP_HEARTBEAT_ENABLED=1", "DMP_HEARTBEAT_SELF_ENDPOINT=https://a.test", "DMP_HEARTBEAT_OPERATOR_KEY_PATH=/k", "DMP_DOMAIN=a.test"}
	for _, x := range []struct {
		environ []string
		want    []string
	}{
		{[]string{"DMP_HEARTBEAT_DNS_RESOLVERS=192.0.2.1,[2001:db8::1]:53,2001:db8::1"}, nil},
		{[]string{"DMP_HEARTBEAT_DNS_RESOLVERS=host,192.0.2.1:0"}, []string{`"host"`, `"192.0.2.1:0"`}},
		{[]string{"DMP_HEARTBEAT_DNSSEC_REQUIRED=1", "DMP_HEARTBEAT_DNS_RESOLVERS=127.0.0.1"}, nil},
		{[]string{"DMP_HEARTBEAT_DNSSEC_REQUIRED=1", "DMP_HEARTBEAT_DNS_RESOLVERS=127.0.0.1,192.0.2.1"}, []string{"DNSSEC_REQUIRED"}},
		{[]string{"DMP_HEARTBEAT_DNSSEC_REQUIRED=1"}, []string{"DNSSEC_REQUIRED"}},
		{[]string{"DMP_HEARTBEAT_PUBLIC_SEED_URLS=https://a.test/x,http://b.test/x"}, []string{"http://b.test/x"}},
	} {
		c, warnings, errs := resolve(t, append(x.environ, base...), "", nil)
		if c == nil || len(errs) > 0 || len(warnings) != len(x.want) {
			t.Errorf("%q: %v, %v", x.environ, warnings, errs)
		}
		for _, w := range x.want {
			if !strings.Contains(warnings.Error(), w) {
				t.Errorf("%q: %v", x.environ, warnings)
			}
		}
	}
}

func TestZone(t *testing.T) {
	c, _, _ := resolve(t, []string{local, "DMP_NODE_HOSTNAME=node.test", "DMP_DOMAIN=Mesh.Test."}, "", nil)
	if c.Zone() != "mesh.test" || c.StateDir() != "/var/lib/dmp" {
		t.Error(c.Zone(), c.StateDir())
	}
}

func TestHandoff(t *testing.T) {
	c, _, errs := resolve(t, []string{local, "DMP_OPERATOR_TOKEN=geheim", "DMP_SYNC_PEER_TOKEN=geheim2", "DMP_DNS_TTL=7", "DMP_DOMAIN=a.test"}, "", nil)
	if errs != nil {
		t.Fatal(errs)
	}
	if bytes.Contains(c.For(Data), []byte("geheim")) {
		t.Error("the data plane is given a secret")
	}
	for _, plane := range []Plane{Data, Control} {
		got, err := Read(bytes.NewReader(c.For(plane)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range settings {
			if s.Plane&plane != 0 && got.String(s.Name) != c.String(s.Name) {
				t.Errorf("%s is %q, was %q", s.Name, got.String(s.Name), c.String(s.Name))
			}
		}
	}
	for _, bad := range []string{"NO_SUCH=1\n", "DNS_TTL=x\n", "junk\n"} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, s := range settings {
		if got, err := s.parse(s.Default); err != nil || got != s.Default {
			t.Errorf("%s: default %q reads as %q, %v", s.Name, s.Default, got, err)
		}
		if s.Doc == "" || s.Plane == 0 {
			t.Errorf("%s has no text or no plane", s.Name)
		}
	}
}

func TestReloadChanges(t *testing.T) {
	a, _, _ := resolve(t, []string{local}, "", nil)
	b, _, _ := resolve(t, []string{local, "DMP_DNS_PORT=1", "DMP_DNS_TTL=1"}, "", nil)
	if got := ReloadChanges(a, b); len(got) != 1 || got[0] != "DMP_DNS_PORT" {
		t.Error(got)
	}
}

func TestLoadForOnePlane(t *testing.T) {
	t.Setenv("DMP_DOMAIN", "a.test") // and HTTP_HOST as it is: everywhere
	var out strings.Builder
	if c, _, err := Load("dmp-dataplane", Data, nil, &out); err != nil || c.Zone() != "a.test" {
		t.Errorf("the data plane: %v", err)
	}
	if _, _, err := Load("dmp-controlplane", Control, nil, &out); err == nil || !strings.Contains(err.Error(), "AUTH_MODE") {
		t.Errorf("the control plane: %v", err)
	}
	if _, _, err := Load("dmp-dataplane", Data, []string{"--dns-port", "x"}, &out); ExitCode(err) != 2 {
		t.Errorf("a bad flag: %v", err)
	}
}
