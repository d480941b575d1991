# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the fuzz targets; scripts/fuzz calls it in a build directory, with
#   FUZZ      this directory
#   OUT       where to build
#   SRC       the prepared source tree
#   COMPILE   how meson compiles a file of the series, without its names
#   LINK      what meson links a unit test with

TARGETS := json hello verdict last-word wire return-path compare profile destination source
PLANTED := hello destination

# Ours are compiled here, since only they are to steer the fuzzer.
OURS := $(addprefix handshake/,channel compare compare-promises destination end handshake hex \
    message policy qmp query resume settings source wire words) options
# QEMU's own, which meson puts into a library that not all unit tests need
THEIRS := migration-stats qemu-file yank_functions
SHARED := fuzz stubs peer tls

# These read what a peer sends, and need no more than that.
READERS := hello verdict last-word wire

comma := ,
SANITIZE := -fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined
WRAP := $(addprefix -Wl$(comma)--wrap=,bql_locked clock_gettime \
    qemu_guest_getrandom_nofail qio_channel_socket_connect_async \
    qio_channel_tls_handshake)

objects := $(patsubst %,$(OUT)/migration/%.o,$(OURS) $(THEIRS)) $(SHARED:%=$(OUT)/%.o)
reading := $(OUT)/fuzz.o $(OUT)/migration/handshake/hex.o \
    $(OUT)/migration/handshake/wire.o

.PHONY: all
.SECONDARY:
all: $(TARGETS:%=$(OUT)/fuzz-%) $(PLANTED:%=$(OUT)/planted-%)

# json.c brings message.c along.
$(OUT)/fuzz-json: $(reading)
$(READERS:%=$(OUT)/fuzz-%) $(OUT)/planted-hello: $(reading) $(OUT)/migration/handshake/message.o
talking := $(addprefix $(OUT)/fuzz-,$(filter-out json $(READERS),$(TARGETS))) $(OUT)/planted-destination
$(talking): $(objects)
# stubs.c has it.
$(talking): WRAP += -Wl,--wrap=monitor_vprintf

$(OUT)/migration/%.o: $(SRC)/migration/%.c
	mkdir -p $(@D)
	$(COMPILE) $(SANITIZE) -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/%.o: $(FUZZ)/%.c
	$(COMPILE) $(SANITIZE) -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/planted-%.o: $(FUZZ)/%.c
	$(COMPILE) $(SANITIZE) -DPLANTED_BUG -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/fuzz-%: $(OUT)/%.o
	clang -fsanitize=fuzzer $(WRAP) -o $@.tmp $^ $(LINK) && mv $@.tmp $@

$(OUT)/planted-%: $(OUT)/planted-%.o
	clang -fsanitize=fuzzer $(WRAP) -o $@.tmp $^ $(LINK) && mv $@.tmp $@

-include $(wildcard $(OUT)/*.o.d $(OUT)/migration/*.o.d $(OUT)/migration/*/*.o.d)
