package stats

import (
	"fmt"
	"io"
	"sort"
	"strconv"
)

// Write renders the page as Prometheus text (version 0.0.4), sorted by name as the reference does, floats throughout.
func (p *Page) Write(w io.Writer) error {
	order := make([]int, len(table))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return table[order[a]].Name < table[order[b]].Name })
	last := ""
	cumulative := uint64(0)
	for _, i := range order {
		r := &table[i]
		labels := r.Labels
		if r.Name != last {
			last = r.Name
			if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", r.Name, r.Help, r.Name, [...]string{"counter", "gauge", "histogram"}[r.Kind]); err != nil {
				return err
			}
		}
		v := p.Value(Counter(i))
		name := r.Name
		if r.Kind == KindHistogram {
			if r.Le == "sum" {
				// A histogram's rows are in the order buckets, sum; the count is the last bucket's cumulative one.
				if err := line(w, name+"_count", labels, float64(cumulative)); err != nil {
					return err
				}
				cumulative = 0
				name += "_sum"
			} else {
				cumulative += v
				v = cumulative
				name += "_bucket"
				if labels != "" {
					labels += ","
				}
				labels += `le="` + r.Le + `"`
			}
		}
		f := float64(v)
		if r.Scale != 0 && (r.Le == "" || r.Le == "sum") {
			f /= r.Scale
		}
		if err := line(w, name, labels, f); err != nil {
			return err
		}
	}
	return nil
}

func line(w io.Writer, name, labels string, v float64) error {
	if labels != "" {
		name += "{" + labels + "}"
	}
	_, err := fmt.Fprintf(w, "%s %s\n", name, Float(v))
	return err
}

// Float writes a number as the reference's client library does: 1.0, not 1.
func Float(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	for i := range len(s) {
		if s[i] == '.' {
			return s
		}
	}
	return s + ".0"
}
