package bench

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// bar is a row of a chart: the median of values, and a whisker from the smallest to the largest.
type bar struct {
	label  string
	values []float64
	note   string // behind the value
}

// Measures of a chart, in pixels.
const (
	chartWidth = 720
	chartLeft  = 96  // where bars begin
	chartRight = 190 // room for value and ratio
	chartRow   = 26
	chartTop   = 38
)

// chartStyle has colours for light and dark, background included, so that it can be read whatever page it is on.
const chartStyle = `
text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}.n{fill:#59636e}.bg{fill:#fff;stroke:#d1d9e0}
.bar{fill:#9aa6b2}.own{fill:#2f6fdb}.lim{fill:#d5dbe1}.w{stroke:#1f2328;stroke-width:1.5}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#9198a1}.bg{fill:#151b23;stroke:#3d444d}.bar{fill:#656f7a}.own{fill:#4c8dff}.lim{fill:#3a424c}.w{stroke:#e6edf3}}
`

// barChart draws one as SVG; the same bars give the same bytes.
func barChart(title string, bars []bar, digits int) string {
	largest := 0.0
	for _, b := range bars {
		largest = max(largest, slices.Max(b.values))
	}
	if largest <= 0 {
		return ""
	}
	height := chartTop + chartRow*len(bars) + 10
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, height, chartWidth, height, html.EscapeString(title))
	fmt.Fprintf(&s, "<style>%s</style>\n", chartStyle)
	fmt.Fprintf(&s, `<rect class="bg" x="0.5" y="0.5" width="%d" height="%d" rx="6"/><text class="t" x="12" y="23">%s</text>`+"\n", chartWidth-1, height-1, html.EscapeString(title))
	x := func(v float64) float64 { return chartLeft + v/largest*(chartWidth-chartLeft-chartRight) }
	for i, b := range bars {
		top := chartTop + i*chartRow
		class := "bar"
		switch b.label {
		case "dmpd":
			class = "own"
		case "echo":
			class = "lim"
		}
		m, low, high := median(b.values), slices.Min(b.values), slices.Max(b.values)
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text><rect class="%s" x="%d" y="%d" width="%.1f" height="18"/>`, chartLeft-8, top+14, html.EscapeString(b.label), class, chartLeft, top, x(m)-chartLeft)
		if low < high {
			fmt.Fprintf(&s, `<path class="w" d="M%.1f %dH%.1fM%.1f %dv8M%.1f %dv8"/>`, x(low), top+9, x(high), x(low), top+5, x(high), top+5)
		}
		fmt.Fprintf(&s, `<text x="%.1f" y="%d">%.*f <tspan class="n">%s</tspan></text>`+"\n", x(max(high, m))+8, top+14, digits, m, html.EscapeString(b.note))
	}
	s.WriteString("</svg>\n")
	return s.String()
}

// chart draws a table's contenders beside each other; "" if there are not two of them.
func chart(t *Table) string {
	if len(t.Contenders) < 2 {
		return ""
	}
	ours := t.ours()
	bars := make([]bar, len(t.Contenders))
	for i, c := range t.Contenders {
		b := bar{label: c.Name}
		switch {
		case t.Measure == starts:
			b.values = []float64{float64(c.MemoryBytes+c.FileBytes) / 1e6}
			b.note = fmt.Sprintf("first answer after %.2f s", c.ReadyS)
		case t.Scenario == "latency":
			for j := range c.Rounds {
				b.values = append(b.values, c.Rounds[j].P50Ms*1000)
			}
			b.note = fmt.Sprintf("p99 %.0f", c.P99Ms*1000)
		default:
			for _, v := range c.values(t.Measure) {
				b.values = append(b.values, v/1000)
			}
			if ours != nil && c != ours {
				b.note = fmt.Sprintf("dmpd / it: %.2f", median(ours.values(t.Measure))/median(c.values(t.Measure)))
			}
		}
		bars[i] = b
	}
	unit, digits := "k answers for each second of the server's CPU", 1
	switch {
	case t.Measure == updates:
		unit, digits = "k updates a second", 2
	case t.Measure == starts:
		unit, digits = "MB of memory, with pages of files, at the first answer", 0
	case t.Scenario == "latency":
		unit, digits = "p50 in microseconds", 1
	}
	return barChart(t.Title+": "+unit, bars, digits)
}
