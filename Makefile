# SPDX-License-Identifier: GPL-2.0-or-later
# The commands of the project; scripts/ does the work.

BASE ?= 10.0
comma := ,
empty :=
# Where it is built, below build/: a base, or the user's own tree.
PLACE := $(if $(QEMU_SRC),custom,$(BASE))
# All bases, unless the user says which; the one that is built first. Of what Debian
# calls 11.1 nobody has seen whether the patches fit: it takes trees of one's own.
OTHERS := $(filter-out $(BASE) $(if $(QMHS_TREES),,11.%),$(sort $(notdir $(wildcard patches/[0-9]*))))
PLACES := $(subst $(empty) ,$(comma),$(strip $(PLACE) \
    $(if $(QEMU_SRC)$(filter-out file,$(origin BASE)),,$(OTHERS))))
export QEMU_SRC REFRESH
# Architectures of guests.
export QMHS_TARGETS := $(TARGETS)

.PHONY: all check check-full check-asan check-series series refresh demo bench bench-libvirt \
        promises matrix fuzz mutate mutate-fixes mutate-libvirt clean help

all:
	@scripts/build $(PLACE)

check:
	@scripts/check $(PLACES)

check-full:
	@scripts/check $(PLACES) full

check-asan:
	@scripts/check $(PLACE) asan

series:
	@scripts/series $(PLACE)

check-series:
	@scripts/series $(PLACE) --test$(if $(PARTS),='$(PARTS)')

refresh:
	@scripts/refresh-patches $(PLACE)

demo:
	@scripts/demo $(PLACE) $(TARGET)

bench promises:
	@scripts/$@ $(PLACE)

matrix:
	@scripts/matrix $(PLACES)

bench-libvirt:
	@scripts/bench-libvirt

mutate:
	@scripts/mutate $(PLACE) $(if $(ONLY),--only '$(ONLY)')

mutate-fixes:
	@scripts/mutate-fixes $(if $(filter file,$(origin BASE)),11.1,$(BASE)) $(if $(ONLY),--only '$(ONLY)')

mutate-libvirt:
	@scripts/mutate-libvirt $(if $(ONLY),--only '$(ONLY)')

fuzz:
	@scripts/fuzz $(PLACE) $(if $(SMOKE),smoke,$(or $(SECONDS),60))

clean:
	rm -rf build

help:
	@sed -n 's/^#: \?//p' Makefile | grep -v \
	    $(foreach c,demo bench,$(if $(wildcard scripts/$c),,-e 'make $c')) -e '^-$$'

#: make                    builds build/10.0/qemu-system-x86_64, qemu-img and the tests
#: make BASE=10.2          the same for another base: 10.2, 11.0, 11.1
#: make TARGETS=aarch64    and qemu-system-aarch64 beside it; also i386, s390x, ppc64
#: make QEMU_SRC=DIR       the same from your own QEMU tree, never changed, in build/custom
#: make demo               builds, and migrates a real guest with the handshake; TARGET=aarch64
#: make check              builds 10.0 and 10.2, and runs all the tests that gate a change
#: make check-full         and those that take long, and once more with multifd
#: make check-asan         our own tests with AddressSanitizer and UBSan, in build/10.0-asan
#: make bench              measures and draws
#: make promises           writes docs/promises.rst: what is found before a guest moves
#: make matrix             writes docs/matrix.rst: which QEMU migrates to which
#: make bench-libvirt      measures how long libvirt takes to set up a migration; takes root
#: make fuzz               fuzzes the handshake, each target for SECONDS=60; SMOKE=1: a few
#: make mutate             breaks the code on purpose, and sees the tests fail; ONLY=PATTERN
#: make mutate-fixes       takes one fix at a time out of 11.1's series, and sees its test fail
#: make mutate-libvirt     the same with the series for libvirt; takes root
#: make series             writes build/series/10.0/*/*.patch for git am, and checks it
#: make check-series       and builds and tests after each of its parts; PARTS=1-fixes: some
#: make refresh            the way back: patches/ from the commits in build/series/10.0-tree
#: make help               lists these
#: make clean              removes build/; the cache in ~/.cache/qemu-migration-handshake stays
#:
#: REFRESH=1               looks for a newer point release of QEMU
#: QMHS_TREES="DIR..."     your own QEMU trees, for the bases that they are of
#: QMHS_CACHE=DIR          keeps fetched sources, meson and ccache there
#: QMHS_CONFIGURE=OPTIONS  more options for QEMU's configure
#: QMHS_NO_INSTALL=1       takes it that all packages are there
