module ocistern/bench/link

go 1.25.0
