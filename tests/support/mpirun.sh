#!/bin/sh
# mpirun.sh RANKS CMD...: mpirun as the tests and ./dev call it: any number of ranks on any number of cores, also as root.
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
exec mpirun --bind-to none --oversubscribe -n "$ranks" "$@"
