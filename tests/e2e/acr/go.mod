module ocistern/tests/e2e/acr

go 1.25.0
