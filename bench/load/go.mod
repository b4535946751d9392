module ocistern/bench/load

go 1.25.0
