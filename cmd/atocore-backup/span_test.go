package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A length of time is what restic would make of it. Go's forms are accepted where
// they cannot be mistaken for that.
func TestSpan(t *testing.T) {
	for text, want := range map[string]struct {
		span
		words string
	}{
		"2y5m7d3h":         {span{2, 5, 7, 3 * time.Hour}, "2 years 5 months 7 days 3h0m0s"},
		"1y1m1d":           {span{1, 1, 1, 0}, "1 year 1 month 1 day"},
		"7d":               {span{days: 7}, "7 days"},
		"2m":               {span{months: 2}, "2 months"},
		"7m":               {span{months: 7}, "7 months"},
		"90m":              {span{months: 90}, "90 months"},
		"2y":               {span{years: 2}, "2 years"},
		"36h":              {span{time: 36 * time.Hour}, "36h0m0s"},
		"1m36h":            {span{months: 1, time: 36 * time.Hour}, "1 month 36h0m0s"},
		"7d2m":             {span{months: 2, days: 7}, "2 months 7 days"},
		"0d":               {span{}, "0s"},
		"0":                {span{}, "0s"},
		"1.5h":             {span{time: 90 * time.Minute}, "1h30m0s"},
		"2d1.5h":           {span{days: 2, time: 90 * time.Minute}, "2 days 1h30m0s"},
		"90s":              {span{time: 90 * time.Second}, "1m30s"},
		"1h30s":            {span{time: time.Hour + 30*time.Second}, "1h0m30s"},
		"500ms":            {span{time: 500 * time.Millisecond}, "500ms"},
		"1h1s1ms1us1ns":    {span{time: time.Hour + time.Second + 1001001*time.Nanosecond}, "1h0m1.001001001s"},
		"1000000h":         {span{time: 1_000_000 * time.Hour}, "1,000,000 hours"},
		"1000000y":         {span{years: 1_000_000}, "1,000,000 years"},
		"0y1m0d":           {span{months: 1}, "1 month"},
		"2562047h47m16.8s": {}, "5m3s": {}, "1h30m": {}, "3h5m": {}, "2m30s": {}, "1m30m": {}, "1h1m1s": {}, "2m1.5h": {}, "1.5m": {}, "1m1ms": {},
		"": {}, "d": {}, "7": {}, "7x": {}, "7D": {}, " 7d": {}, "7d ": {}, "-7d": {}, "-1h": {}, "+7d": {}, "7d-1h": {}, "1d1d": {}, "1h1h": {}, "2y5m7d3h2y": {},
		"1000001y": {}, "99999999999999999999d": {}, "9999999h": {}, "1w": {}, "1.5d": {}, "7d7": {}, "٧d": {},
	} {
		var got span
		err := got.UnmarshalText([]byte(text))
		if want.words == "" {
			require.Error(t, err, "%q is %v", text, got)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want.span, got, text)
		if text != "1000000h" { // Go's words for it
			require.Equal(t, want.words, got.String())
		}
	}
	for _, text := range []string{"5m3s", "1h30m", "3h5m", "1.5m", "2m30s"} {
		require.ErrorContains(t, new(span).UnmarshalText([]byte(text)), "m is months", text)
	}
}
