package backuphttp

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// slowReader is a lister whose readings wait, and the numbers of those that began.
func slowReader() (h *Handler, began *int, end chan error) {
	began, end = new(int), make(chan error)
	h = &Handler{}
	h.lists.read = func(ctx context.Context) (*listing, error) {
		*began++
		n := *began
		select {
		case err := <-end:
			if err != nil {
				panic(err)
			}
			return &listing{json: []byte{byte(n)}}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return h, began, end
}

// A request never gets a list that was begun before it, and those that come while
// one is read share the next.
func TestListsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, began, end := slowReader()
		got := make(chan byte, 200)
		ask := func(n int) {
			for range n {
				go func() {
					list, err := h.list(t.Context())
					if err == nil {
						got <- list.json[0]
					}
				}()
			}
			synctest.Wait()
		}
		ask(1)
		ask(100)
		require.Equal(t, 1, *began)
		end <- nil
		synctest.Wait()
		require.Equal(t, byte(1), <-got)
		require.Empty(t, got)
		require.Equal(t, 2, *began)
		ask(1)
		end <- nil
		for range 100 {
			require.Equal(t, byte(2), <-got)
		}
		end <- nil
		require.Equal(t, byte(3), <-got)
		synctest.Wait()
		require.Equal(t, 3, *began)

		// A panic concerns the request alone.
		ended := make(chan error)
		go func() {
			_, err := h.list(t.Context())
			ended <- err
		}()
		end <- errors.New("oops")
		require.ErrorIs(t, <-ended, backup.ErrPanic)
	})
}

// A reading ends when nobody waits for it any more, and not before.
func TestListsEndWithTheirRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, began, end := slowReader()
		ask := func() (cancel func(), ended chan error) {
			ctx, cancel := context.WithCancel(t.Context())
			ended = make(chan error, 1)
			go func() {
				_, err := h.list(ctx)
				ended <- err
			}()
			synctest.Wait()
			return cancel, ended
		}
		cancel, ended := ask()
		cancel2, ended2 := ask() // waits for the next reading
		cancel3, ended3 := ask()
		cancel3()
		require.ErrorIs(t, <-ended3, context.Canceled)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		synctest.Wait()
		require.Equal(t, 2, *began, "the next one goes on")
		end <- nil
		require.NoError(t, <-ended2)
		cancel2()

		cancel, ended = ask()
		cancel2, ended2 = ask()
		cancel2()
		require.ErrorIs(t, <-ended2, context.Canceled)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		synctest.Wait()
		require.Equal(t, 3, *began, "nobody waits for the next one")
		require.Nil(t, h.lists.running)
		require.Nil(t, h.lists.next)
	})
}
