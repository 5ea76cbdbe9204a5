// Writes what targets expose as blocks of a Prometheus. Standard input has a line of JSON for each scrape and then the
// text, as many bytes as the line says; none where the target is gone.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log"
	"math"
	"os"

	kitlog "github.com/go-kit/log"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

const blockMs = int64(2 * 3600 * 1000)

type scrape struct {
	TimeMs int64
	Bytes  int
	Honor  bool
	Labels map[string]string
}

type series struct {
	ref    storage.SeriesRef
	labels labels.Labels
	seenMs int64
}

type target map[string]*series

type writer struct {
	folder  string
	block   *tsdb.BlockWriter
	endMs   int64
	targets map[string]target
}

func main() {
	w := &writer{folder: os.Args[1], targets: map[string]target{}}
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		must(err)
		var head scrape
		must(json.Unmarshal(line, &head))
		text := make([]byte, head.Bytes)
		_, err = io.ReadFull(in, text)
		must(err)
		must(w.write(head, text))
	}
	must(w.flush())
}

// write appends the samples of one scrape, and marks as stale what the scrape before had and this one has not.
func (w *writer) write(head scrape, text []byte) error {
	if err := w.open(head.TimeMs); err != nil {
		return err
	}
	of := w.of(head.Labels)
	app := w.block.Appender(context.Background())
	parser, err := textparse.New(text, "text/plain; version=0.0.4")
	if err != nil {
		return err
	}
	for {
		entry, err := parser.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if entry != textparse.EntrySeries {
			continue
		}
		name, _, number := parser.Series()
		one, known := of[string(name)]
		if !known {
			var exposed labels.Labels
			parser.Metric(&exposed)
			one = &series{labels: joined(exposed, head)}
			of[string(name)] = one
		}
		one.seenMs = head.TimeMs
		if err := one.append(app, head.TimeMs, number); err != nil {
			return err
		}
	}
	for name, one := range of {
		if one.seenMs != head.TimeMs {
			if err := one.append(app, head.TimeMs, math.Float64frombits(value.StaleNaN)); err != nil {
				return err
			}
			delete(of, name)
		}
	}
	return app.Commit()
}

func (s *series) append(app storage.Appender, timeMs int64, number float64) error {
	ref, err := app.Append(s.ref, s.labels, timeMs, number)
	s.ref = ref
	return err
}

// joined gives a series its target's labels, as a scrape does.
func joined(exposed labels.Labels, head scrape) labels.Labels {
	all := exposed.Map()
	for name, text := range head.Labels {
		if own, taken := all[name]; taken && !head.Honor {
			all["exported_"+name] = own
		} else if taken {
			continue
		}
		all[name] = text
	}
	return labels.FromMap(all)
}

func (w *writer) of(names map[string]string) target {
	key := labels.FromMap(names).String()
	if w.targets[key] == nil {
		w.targets[key] = target{}
	}
	return w.targets[key]
}

// open begins a block where the time is beyond the present one.
func (w *writer) open(timeMs int64) error {
	if w.block != nil && timeMs < w.endMs {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	block, err := tsdb.NewBlockWriter(kitlog.NewNopLogger(), w.folder, blockMs)
	w.block, w.endMs = block, timeMs-timeMs%blockMs+blockMs
	for _, of := range w.targets {
		for _, one := range of {
			one.ref = 0
		}
	}
	return err
}

func (w *writer) flush() error {
	if w.block == nil {
		return nil
	}
	if _, err := w.block.Flush(context.Background()); err != nil {
		return err
	}
	return w.block.Close()
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
