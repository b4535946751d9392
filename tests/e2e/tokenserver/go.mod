module ocistern/tests/e2e/tokenserver

go 1.25.0
