package content

import (
	"bytes"
	"io"
	"testing"
)

func TestEveryOffsetHasTheSameBytes(t *testing.T) {
	blob := Blob{Seed: 3, Size: 100_001}
	whole, err := io.ReadAll(blob.Reader())
	if err != nil || int64(len(whole)) != blob.Size {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	for _, offset := range []int64{0, 1, 15, 16, 17, 4096, 99_999, 100_001} {
		r := blob.Reader()
		if _, err := r.Seek(offset, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(rest, whole[offset:]) {
			t.Errorf("from %d: other bytes, %v", offset, err)
		}
	}
	if other, _ := io.ReadAll(Blob{Seed: 4, Size: 100}.Reader()); bytes.Equal(other, whole[:100]) {
		t.Error("the seed decides nothing")
	}
}

func TestACheckerFindsOneWrongByte(t *testing.T) {
	blob := Blob{Seed: 3, Size: 1 << 20}
	whole, _ := io.ReadAll(blob.Reader())
	right := blob.Checker(5)
	_, _ = right.Write(whole[5:700_000])
	_, _ = right.Write(whole[700_000:])
	whole[900_000] ^= 1
	wrong := blob.Checker(5)
	_, _ = wrong.Write(whole[5:])
	if right.Wrong != 0 || wrong.Wrong != 1 {
		t.Errorf("%d and %d wrong", right.Wrong, wrong.Wrong)
	}
	over := blob.Checker(1<<20 - 1)
	_, _ = over.Write(whole[:2])
	if over.Wrong != 1 {
		t.Error("bytes behind the end are right")
	}
}
