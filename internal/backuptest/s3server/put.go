package s3server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"

	"github.com/atocore/backup"
)

// Put makes a bucket in which are the objects, by their keys. It does not go
// through a proxy.
func (s *Server) Put(ctx context.Context, bucket string, objects map[string][]byte) error {
	if err := s.put(ctx, "/"+bucket, nil); err != nil {
		return err
	}
	for key, content := range objects {
		if err := s.put(ctx, "/"+bucket+"/"+key, content); err != nil {
			return err
		}
	}
	return nil
}

// put sends one request, with the simple signature that S3 began with and that
// Swift still accepts: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html.
func (s *Server) put(ctx context.Context, path string, content []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+s.address+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	date := backup.SystemClock().Now().UTC().Format(http.TimeFormat)
	mac := hmac.New(sha1.New, []byte(secret))
	fmt.Fprintf(mac, "PUT\n\n\n%s\n%s", date, path)
	request.Header.Set("Date", date)
	request.Header.Set("Authorization", "AWS "+key+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body) // the status is the error
		return fmt.Errorf("PUT %s: %s\n%s", path, answer.Status, text)
	}
	return nil
}
