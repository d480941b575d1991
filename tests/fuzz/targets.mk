# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the fuzz targets; scripts/fuzz calls it in a build directory, with
#   FUZZ      this directory
#   OUT       where to build
#   SRC       the prepared source tree
#   COMPILE   how meson compiles a file of the series, without its names
#   LINK      what meson links a unit test with

TARGETS := json hello verdict last-word wire judge profile destination source
PLANTED := hello destination

# Ours are compiled here, since only they are to steer the fuzzer.
OURS := $(addprefix handshake-,channels compat destination info json judge \
    message offer policy qmp settings source wire) options
SHARED := fuzz stubs peer

SANITIZE := -fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined
WRAP := -Wl,--wrap=clock_gettime -Wl,--wrap=qemu_guest_getrandom_nofail

objects := $(OURS:%=$(OUT)/migration-%.o) $(SHARED:%=$(OUT)/%.o)

.PHONY: all
.SECONDARY:
all: $(TARGETS:%=$(OUT)/fuzz-%) $(PLANTED:%=$(OUT)/planted-%)

$(OUT)/migration-%.o: $(SRC)/migration/%.c
	$(COMPILE) $(SANITIZE) -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/%.o: $(FUZZ)/%.c
	$(COMPILE) $(SANITIZE) -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/planted-%.o: $(FUZZ)/%.c
	$(COMPILE) $(SANITIZE) -DPLANTED_BUG -MD -MP -MF $@.d -o $@ -c $<

$(OUT)/fuzz-%: $(OUT)/%.o $(objects)
	clang -fsanitize=fuzzer $(WRAP) -o $@.tmp $^ $(LINK) && mv $@.tmp $@

$(OUT)/planted-%: $(OUT)/planted-%.o $(objects)
	clang -fsanitize=fuzzer $(WRAP) -o $@.tmp $^ $(LINK) && mv $@.tmp $@

-include $(wildcard $(OUT)/*.o.d)
