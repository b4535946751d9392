// Package content makes the bytes of a blob from a number, at any offset, without keeping them: the key stream of AES-128
// in counter mode.
package content

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
)

// Blob is a blob of that size. The seed decides its bytes; a shorter one of the same seed is its beginning.
type Blob struct {
	Seed uint64
	Size int64
}

// Reader reads a blob; it is an io.ReadSeeker.
type Reader struct {
	blob   Blob
	offset int64
	stream cipher.Stream
}

// Reader begins at the first byte.
func (b Blob) Reader() *Reader { return &Reader{blob: b} }

// Read makes the next bytes.
func (r *Reader) Read(p []byte) (int, error) {
	left := r.blob.Size - r.offset
	if left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	if r.stream == nil {
		r.stream = r.blob.stream(r.offset)
	}
	clear(p)
	r.stream.XORKeyStream(p, p)
	r.offset += int64(len(p))
	return len(p), nil
}

// Seek moves to any place of the blob, or behind it.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.blob.Size
	}
	if offset < 0 {
		return 0, errors.New("content: before the first byte")
	}
	if offset != r.offset {
		r.offset, r.stream = offset, nil
	}
	return offset, nil
}

func (b Blob) stream(offset int64) cipher.Stream {
	var key, counter [aes.BlockSize]byte
	binary.BigEndian.PutUint64(key[8:], b.Seed)
	binary.BigEndian.PutUint64(counter[8:], uint64(offset/aes.BlockSize))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // The length of the key is right.
	}
	stream := cipher.NewCTR(block, counter[:])
	var skipped [aes.BlockSize]byte
	stream.XORKeyStream(skipped[:offset%aes.BlockSize], skipped[:offset%aes.BlockSize])
	return stream
}

// Digest reads it all: half a second for a GiB, or more.
func (b Blob) Digest() string {
	hash := sha256.New()
	// A hash does not fail, and neither does a Reader.
	_, _ = io.CopyBuffer(hash, struct{ io.Reader }{b.Reader()}, make([]byte, 256<<10))
	return "sha256:" + hex.EncodeToString(hash.Sum(nil))
}

// Checker compares what is written to it with the blob, from an offset on.
type Checker struct {
	reader *Reader
	buffer []byte
	// Wrong counts the pieces of up to 256 KiB that were not the blob's.
	Wrong int
}

// Checker begins at that offset.
func (b Blob) Checker(offset int64) *Checker {
	return &Checker{reader: &Reader{blob: b, offset: offset}}
}

// Write takes any bytes, and never fails.
func (c *Checker) Write(p []byte) (int, error) {
	if c.buffer == nil {
		c.buffer = make([]byte, 256<<10)
	}
	for rest := p; len(rest) > 0; {
		piece := rest[:min(len(rest), len(c.buffer))]
		n, _ := io.ReadFull(c.reader, c.buffer[:len(piece)])
		if !bytes.Equal(piece, c.buffer[:n]) {
			c.Wrong++
		}
		rest = rest[len(piece):]
	}
	return len(p), nil
}
