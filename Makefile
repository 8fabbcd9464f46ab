# pgreeve. `make help` lists the targets.

CARGO      ?= cargo
INSTALL    ?= install
DESTDIR    ?=
prefix     ?= /usr/local
bindir     ?= $(prefix)/bin
sysconfdir ?= /etc
# systemd reads both /usr/lib and /usr/local/lib.
unitdir    ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
docdir     ?= $(prefix)/share/doc/pgreeve
mandir     ?= $(prefix)/share/man
# Where bash, zsh and fish look.
bashdir    ?= $(prefix)/share/bash-completion/completions
zshdir     ?= $(prefix)/share/zsh/site-functions
fishdir    ?= $(prefix)/share/fish/vendor_completions.d
# The program that `make install` installs.
PROGRAM    ?= target/release/pgreeve

.DEFAULT_GOAL := help
.PHONY: help build test chaos lint demo bench install clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## Build the program: target/release/pgreeve.
	$(CARGO) build --release --locked

test: ## Check format and lints, then run every test, against a throwaway PostgreSQL and S3 server.
	@.ci/needs postgresql pooler systemd lints
	@if $(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1; \
	    then $(MAKE) --no-print-directory lint; fi
	$(CARGO) test --locked --features demo

chaos: ## Break everything around two daemons for CHAOS_MINUTES (30), and count; CHAOS_SEED repeats an order.
	@.ci/needs postgresql
	CHAOS_MINUTES=$${CHAOS_MINUTES:-30} $(CARGO) test --locked --features demo --test it -- --ignored --nocapture --exact chaos::for_as_long_as_asked

lint: ## Check format and lints; a warning is an error.
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --features demo -- -D warnings

demo: ## Show retention, sweeps, backup, restore and the audit log on a million rows.
	@.ci/needs postgresql
	$(CARGO) run --locked --features demo -- demo

bench: ## Run the benchmarks.
	@.ci/needs postgresql
	$(CARGO) bench --locked --features demo

install: ## Install what `make build` built. Variables: DESTDIR, prefix (/usr/local), sysconfdir (/etc).
	@test -x $(PROGRAM) || { echo "install: $(PROGRAM) is missing: run make build first" >&2; exit 1; }
	$(INSTALL) -D -m 0755 $(PROGRAM) $(DESTDIR)$(bindir)/pgreeve
	$(INSTALL) -D -m 0644 systemd/pgreeve.service $(DESTDIR)$(unitdir)/pgreeve.service
	$(INSTALL) -D -m 0644 systemd/pgreeve.sysusers.conf $(DESTDIR)$(sysusersdir)/pgreeve.conf
	$(INSTALL) -D -m 0644 -t $(DESTDIR)$(docdir) README.md CHANGELOG.md LICENSE config.toml
	@# The program prints its own manual and completions, so that they are of this version.
	$(INSTALL) -d $(addprefix $(DESTDIR),$(mandir)/man1 $(bashdir) $(zshdir) $(fishdir))
	$(PROGRAM) man --dir $(DESTDIR)$(mandir)/man1
	$(PROGRAM) completions bash > $(DESTDIR)$(bashdir)/pgreeve
	$(PROGRAM) completions zsh > $(DESTDIR)$(zshdir)/_pgreeve
	$(PROGRAM) completions fish > $(DESTDIR)$(fishdir)/pgreeve.fish
	@# An operator's configuration is not touched.
	test -e $(DESTDIR)$(sysconfdir)/pgreeve/config.toml || \
	    $(INSTALL) -D -m 0644 config.toml $(DESTDIR)$(sysconfdir)/pgreeve/config.toml

clean: ## Remove everything that was built.
	$(CARGO) clean
