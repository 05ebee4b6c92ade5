// What every pod's sandbox runs, of Go's own library alone.
module picket.invalid/cluster/pause

go 1.26.0

toolchain go1.26.8
