# SPDX-License-Identifier: GPL-2.0
#
# What a user runs.  Kbuild reads Kbuild, beside this file; `make help` explains the targets.

KDIR ?= /lib/modules/$(shell uname -r)/build
TESTS ?=
JOBS ?=
SERIES ?= $(KERNEL_SERIES)
export KERNEL ACCEL MIRROR

# What modpost adds to a module is compiled without the flags of Kbuild.
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) KCFLAGS='$(KCFLAGS) -ffile-prefix-map=$(CURDIR)=.'
# Not in the environment, where the kernel's makefiles look for it.
lab = scripts/lab $(if $(filter arm64,$(ARCH)),--arch arm64) $(if $(SERIES),--series '$(SERIES)')

.PHONY: all
all: modules

# Modules for a kernel of this machine: the only targets that need no build root, and no root.

.PHONY: modules modules_install
modules: check-kdir
	$(kbuild) modules

modules_install: check-kdir
	$(kbuild) modules_install

.PHONY: check-kdir
check-kdir:
	@test -e '$(KDIR)/Makefile' || { \
		echo 'make: no kernel to build for in $(KDIR): install the headers or set KDIR=...'; \
		echo 'make: "make demo" needs neither: it brings a kernel of its own'; exit 1; } >&2
	@test -e '$(KDIR)/rust/libkernel.rmeta' || { \
		echo 'make: the kernel in $(KDIR) has no Rust metadata, which modules in Rust need:'; \
		echo 'make: set KDIR=... to a kernel built with CONFIG_RUST=y'; \
		echo 'make: "make demo" needs none: it brings a kernel of its own'; exit 1; } >&2

# What runs in the build root, which it makes first; see scripts/lab.

.PHONY: demo bench deb deb-check docs shell check kselftest kit mutate qemu rust-analyzer series lab-modules
demo bench deb deb-check docs shell check kselftest kit mutate qemu rust-analyzer series:
	@$(lab) $@

.PHONY: qemu-check
qemu-check:
	@$(lab) qemu --check

.PHONY: series-check
series-check:
	@$(lab) series --check

lab-modules:
	@$(lab) modules

.PHONY: test
test:
	@$(lab) test $(if $(TESTS),--filter '$(TESTS)') $(if $(JOBS),--jobs $(JOBS))

.PHONY: clean
clean:
	@find . -path ./out -prune -o -type f \( -name '*.o' -o -name '*.ko' -o -name '*.mod' \
		-o -name '*.mod.c' -o -name '.*.cmd' -o -name '*.rmeta' -o -name '*.order' \
		-o -name '*_generated.*' -o -name Module.symvers \) -exec rm -f {} +
	rm -rf out rust-project.json

.PHONY: help
help:
	@echo 'With nothing but root on a Debian machine (a build root with kernel, compilers and'
	@echo 'QEMU is made in ~/.cache/virtio-suspend at the first run, and reused):'
	@echo ''
	@echo '  make demo           boot a guest, suspend a virtio device under I/O, resume it'
	@echo '  make shell          a guest to play in'
	@echo '  make test           all tests; TESTS=glob selects: the last line is the result;'
	@echo '                  JOBS=1 runs one at a time'
	@echo '  make bench          the figures, to out/bench.json'
	@echo '  make check          formatting, lints, checkpatch, conformance'
	@echo '  make docs           HTML of the pages and of the crate, to out/docs'
	@echo '  make mutate         break the driver in many ways: each must fail a test'
	@echo '  make qemu           build QEMU with SUSPEND in its own devices, print where it is;'
	@echo "                  TESTS='qemu/*' are the tests with it, and make demo has one act more"
	@echo '  make qemu-check     the same, and apply, checkpatch and test the series'
	@echo '  make kit            a kernel and an initramfs that try the devices of any VMM, in out/kit'
	@echo '  make kselftest      the kselftests as the kernel installs them, in out/kselftest'
	@echo '  make series         patches for the kernel, in out/series: makes and applies them'
	@echo '  make series-check   the same, and builds the kernel after each of them: takes long'
	@echo '  make deb            packages for Debian, in out/deb'
	@echo '  make deb-check      the same, and have apt, dpkg and DKMS try them in a Debian of its own'
	@echo '  make lab-modules    only the modules, for the guest'
	@echo '  make rust-analyzer  rust-project.json for the editor'
	@echo ''
	@echo 'With a kernel built with CONFIG_RUST=y and its compiler:'
	@echo ''
	@echo '  make                the modules, for the kernel in KDIR'
	@echo '  make modules_install'
	@echo ''
	@echo 'Either way:'
	@echo ''
	@echo '  make clean          remove what was built here, not the build root'
	@echo ''
	@echo 'Variables: KDIR, ACCEL=kvm, MIRROR=http://..., SERIES=7.2 (all: make test goes through'
	@echo '           them), ARCH=arm64 (make test)'
	@echo 'More:      scripts/lab --help'
