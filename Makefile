# SPDX-License-Identifier: GPL-3.0-or-later
# `make run` and `make test` need only Python 3.11 or later with its venv module: they create .venv themselves.

PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Scripts whose names have no extension. mypy checks each of them by itself.
SCRIPTS := vmside/ruddo.PrometheusProxy vmside/ruddo.PrometheusDiscover tests/standin/qrexec-client-vm tests/standin/admin

# Where `make install` puts the files. DESTDIR comes before all of these, for building packages.
PREFIX ?= /usr
UNITDIR ?= $(PREFIX)/lib/systemd/system
PRESETDIR ?= $(PREFIX)/lib/systemd/system-preset
MANDIR ?= $(PREFIX)/share/man
COMPLETIONDIR ?= $(PREFIX)/share/bash-completion/completions
PRIVATE := $(PREFIX)/share/prometheus-qubes-proxy
DOC := $(PREFIX)/share/doc/prometheus-qubes-proxy
NAME := prometheus-qubes-proxy
# Packages write 0.3.0.dev0 as 0.3.0~dev0, which is older than 0.3.0 for them, too.
VERSION := $(subst .dev,~dev,$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' federator/__init__.py))
# The day of the release; today where CHANGELOG.md does not have this version yet.
DATE := $(shell sed -n 's/^## $(VERSION) (\(.*\))$$/\1/p' CHANGELOG.md)
# How often packages of this version were made, in the file that Qubes' builder wants.
REL := $(shell cat rel)
MAINTAINER := $(NAME) <$(NAME)@example.org>
SPEC := dist/$(NAME).spec
# The time that files in packages have.
export SOURCE_DATE_EPOCH ?= $(shell date -u -d '$(DATE)' +%s)

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-debian coverage lint lock check soak attacks bench clean install install-proxy install-monitor install-service install-dom0 source srpm rpm deb repo version

help:
	@echo "make run         try it: the daemon on 127.0.0.1:8199, eight demo qubes, real exporters (Ctrl-C ends it)"
	@echo "make test-fast   the tests that are not slow: less than 30 seconds of CPU time"
	@echo "make test        all tests; with PYTEST_ARGS='-k wire' those whose names contain wire"
	@echo "make coverage    all tests, and what they do not cover"
	@echo "make lint        ruff and mypy"
	@echo "make check       lint, then test"
	@echo "make lock        pin the newest versions of what the tests need, in requirements-dev.lock"
	@echo "make soak        five minutes of qubes that come, go and fail, then ten of all attacks at once; prints what"
	@echo "                 the daemon holds before and after"
	@echo "make attacks     what hostile clients and qubes do to honest scrapers; takes some fifteen minutes"
	@echo "make bench       what a scrape costs, compared with other programs; takes a quarter of an hour"
	@echo "make install-proxy, install-monitor, install-service, install-dom0, or install for all; DESTDIR, PREFIX, UNITDIR"
	@echo "make rpm, srpm, deb    the packages, into dist/; make repo: folders for apt and dnf, into dist/repo/"
	@echo "make clean       remove everything that these created"

.venv/installed: pyproject.toml requirements-dev.lock
	@[ ! -L .venv ] || { echo ".venv is a link: what it leads to would be emptied. Remove the link" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(PYTHON) is missing or older than Python 3.11; name another one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Installing what the tests and the demo need into .venv, from PyPI; this takes a minute."
	@$(PYTHON) -m venv --clear .venv
	@{ $(PIP_INSTALL) --require-hashes --requirement requirements-dev.lock && \
	    $(PIP_INSTALL) --no-deps --no-build-isolation --editable .; } >.venv/pip.log 2>&1 || { \
	    echo "This needs PyPI: .venv/pip.log says what pip found. Without it, with the distribution's packages" \
	    "(Debian: python3-aiohttp python3-prometheus-client python3-tomli): /usr/bin/python3 -m tests.demo.run" >&2; exit 1; }
	@touch $@

# The newest versions that pyproject.toml allows, for every supported Python, and those of Salt, which one test file
# needs. uv itself is not needed for anything else.
lock:
	$(PYTHON) -m venv --clear dist/lock
	dist/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	dist/lock/bin/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes --extra dev \
	    --custom-compile-command 'make lock' --output-file requirements-dev.lock pyproject.toml
	echo salt | dist/lock/bin/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes \
	    --custom-compile-command 'make lock' --output-file tests/salt.lock -
	rm -rf dist/lock

run: .venv/installed
	@exec $(BIN)/python -m tests.demo.run

test: .venv/installed
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: .venv/installed
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

# pyproject.toml says what is measured, and which part has to be covered.
coverage: .venv/installed
	$(BIN)/coverage erase
	PYTHONASYNCIODEBUG=1 $(BIN)/coverage run -m pytest -m 'not unmeasured' $(PYTEST_ARGS)
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest -m unmeasured $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	for script in $(SCRIPTS); do $(BIN)/mypy $$script || exit 1; done

# The oldest supported versions: Debian 12's own Python and libraries (aiohttp 3.8, prometheus-client 0.16). They use
# features that are deprecated now, and we cannot change that.
# Its pytest-asyncio leaves event loops to the garbage collector, with their sockets; with the newest one they are errors.
test-debian:
	PYTHONASYNCIODEBUG=1 /usr/bin/python3 -m pytest -W ignore::DeprecationWarning -W 'ignore:unclosed <socket.socket fd=:ResourceWarning' -W 'ignore:unclosed event loop:ResourceWarning' --ignore=tests/test_soak.py --ignore=tests/test_attacks.py --ignore=tests/test_debian_root.py $(PYTEST_ARGS)

check: lint test

soak: .venv/installed
	$(BIN)/python -m tests.soak 300
	$(BIN)/python -m tests.siege 600

attacks: .venv/installed
	$(BIN)/python -m tests.attacks $(ATTACKS)

bench: .venv/installed
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: install-proxy install-monitor install-service install-dom0

# The daemon, for the NetVM. It runs with the distribution's python3 and libraries, from a folder of its own.
install-proxy:
	install -d "$(DESTDIR)$(PRIVATE)/federator/text" "$(DESTDIR)$(PRIVATE)/federator/static" "$(DESTDIR)$(DOC)/docs/pictures" "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(PRESETDIR)" "$(DESTDIR)/etc" "$(DESTDIR)$(MANDIR)/man1" "$(DESTDIR)$(MANDIR)/man5" "$(DESTDIR)$(COMPLETIONDIR)"
	install -m 644 federator/*.py "$(DESTDIR)$(PRIVATE)/federator/"
	install -m 644 federator/text/*.py "$(DESTDIR)$(PRIVATE)/federator/text/"
	install -m 644 federator/static/* "$(DESTDIR)$(PRIVATE)/federator/static/"
	install -m 755 conf/$(NAME)-firewall "$(DESTDIR)$(PRIVATE)/"
	install -m 644 conf/prometheus.yml conf/qubes-rules.yml conf/qubes-at-a-glance.json conf/qubes-at-a-glance.html "$(DESTDIR)$(PRIVATE)/"
	sed 's|/usr/share/$(NAME)|$(PRIVATE)|' conf/launcher.py >"$(DESTDIR)$(PREFIX)/bin/$(NAME)"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/$(NAME)"
	sed 's|=/usr/bin/|=$(PREFIX)/bin/|' conf/$(NAME).service >"$(DESTDIR)$(UNITDIR)/$(NAME).service"
	chmod 644 "$(DESTDIR)$(UNITDIR)/$(NAME).service"
	install -m 644 conf/70-$(NAME).preset "$(DESTDIR)$(PRESETDIR)/"
	install -m 644 conf/man/$(NAME).1 "$(DESTDIR)$(MANDIR)/man1/"
	$(PYTHON) conf/man/configuration.py >"$(DESTDIR)$(MANDIR)/man5/$(NAME).toml.5"
	chmod 644 "$(DESTDIR)$(MANDIR)/man5/$(NAME).toml.5"
	install -m 644 conf/completion.bash "$(DESTDIR)$(COMPLETIONDIR)/$(NAME)"
	install -m 644 *.md "$(DESTDIR)$(DOC)/"
	install -m 644 docs/*.md "$(DESTDIR)$(DOC)/docs/"
	install -m 644 docs/pictures/* "$(DESTDIR)$(DOC)/docs/pictures/"
	# The documents link to conf/; what they link to is there.
	ln -sfn ../../$(NAME) "$(DESTDIR)$(DOC)/conf"
	sed -i 's|/usr/share/doc/|$(PREFIX)/share/doc/|' "$(DESTDIR)$(PRIVATE)/federator/views.py" "$(DESTDIR)$(PRIVATE)/federator/remedies.py" "$(DESTDIR)$(UNITDIR)/$(NAME).service" "$(DESTDIR)$(MANDIR)/man1/$(NAME).1"
	[ -e "$(DESTDIR)/etc/$(NAME).toml" ] || install -m 644 conf/$(NAME).toml "$(DESTDIR)/etc/"

# Prometheus beside the daemon, for the monitoring qube.
install-monitor:
	install -d "$(DESTDIR)$(PRIVATE)" "$(DESTDIR)$(UNITDIR)/prometheus.service.d" "$(DESTDIR)$(PRESETDIR)"
	install -m 644 conf/monitor.yml conf/monitor.toml "$(DESTDIR)$(PRIVATE)/"
	install -m 644 conf/$(NAME)-monitor.service "$(DESTDIR)$(UNITDIR)/"
	install -m 644 conf/prometheus-flag.conf "$(DESTDIR)$(UNITDIR)/prometheus.service.d/30_$(NAME)-monitor.conf"
	install -m 644 conf/70-$(NAME)-monitor.preset "$(DESTDIR)$(PRESETDIR)/"

# The service, for the scraped qubes.
install-service:
	install -d "$(DESTDIR)/etc/qubes-rpc" "$(DESTDIR)$(MANDIR)/man8" "$(DESTDIR)/etc/$(NAME)/endpoints.d" "$(DESTDIR)$(PREFIX)/share/doc/$(NAME)-service"
	sed 's|/usr/share/doc/|$(PREFIX)/share/doc/|' conf/man/ruddo.PrometheusProxy.8 >"$(DESTDIR)$(MANDIR)/man8/ruddo.PrometheusProxy.8"
	chmod 644 "$(DESTDIR)$(MANDIR)/man8/ruddo.PrometheusProxy.8"
	install -m 755 vmside/ruddo.PrometheusProxy "$(DESTDIR)/etc/qubes-rpc/"
	install -m 644 conf/endpoint.example "$(DESTDIR)$(PREFIX)/share/doc/$(NAME)-service/"

# The policy, the service that lists the running qubes, and the Salt formula, for dom0.
FORMULA := /srv/formulas/base/$(NAME)-formula/$(NAME)
install-dom0:
	install -d "$(DESTDIR)/etc/qubes-rpc" "$(DESTDIR)/etc/qubes/policy.d" "$(DESTDIR)$(MANDIR)/man8"
	install -m 644 conf/man/ruddo.PrometheusDiscover.8 "$(DESTDIR)$(MANDIR)/man8/"
	install -m 755 vmside/ruddo.PrometheusDiscover "$(DESTDIR)/etc/qubes-rpc/"
	for name in 90-prometheus-proxy.policy 90-prometheus-discover.policy; do \
	    [ -e "$(DESTDIR)/etc/qubes/policy.d/$$name" ] || install -m 644 conf/$$name "$(DESTDIR)/etc/qubes/policy.d/" || exit 1; \
	done

	install -d "$(DESTDIR)$(FORMULA)/files" "$(DESTDIR)/srv/pillar/base/$(NAME)" "$(DESTDIR)/etc/salt/minion.d"
	install -m 644 conf/salt/FORMULA "$(DESTDIR)$(dir $(FORMULA))"
	install -m 644 conf/salt/$(NAME)/*.* "$(DESTDIR)$(FORMULA)/"
	install -m 644 conf/salt/$(NAME)/files/* "$(DESTDIR)$(FORMULA)/files/"
	install -m 644 conf/salt/minion.conf "$(DESTDIR)/etc/salt/minion.d/formula-$(NAME).conf"
	install -m 644 conf/salt/pillar/init.top "$(DESTDIR)/srv/pillar/base/$(NAME)/"
	[ -e "$(DESTDIR)/srv/pillar/base/$(NAME)/init.sls" ] || install -m 644 conf/salt/pillar/init.sls "$(DESTDIR)/srv/pillar/base/$(NAME)/"

# The files that git tracks, or all files where this is not a clone.
source:
	mkdir -p dist
	{ git ls-files -z 2>/dev/null | grep -z . || find . -type f ! -path './dist/*' ! -path './.*' -printf '%P\0'; } | \
	    LC_ALL=C sort --zero-terminated | \
	    tar --create --null --files-from=- --transform='s|^|$(NAME)-$(VERSION)/|' --owner=0 --group=0 --mtime=@$(SOURCE_DATE_EPOCH) \
	    --mode=u=rwX,go=rX | gzip --no-name --best >dist/$(NAME)-$(VERSION).tar.gz

# The same as Qubes' builder puts into the template; the source package has this spec file.
$(SPEC): source
	sed "s/@VERSION@/$(VERSION)/; s/@REL@/$(REL)/; s/@CHANGELOG@/* $$(LC_ALL=C date -u -d '$(DATE)' '+%a %b %d %Y') $(MAINTAINER) - $(VERSION)-$(REL)\n- See CHANGELOG.md/" rpm/$(NAME).spec.in >$@

# In a folder of its own, since rpmbuild takes no blank in a path. Two builds of the same sources give the same bytes.
RPMBUILD = folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp dist/$(NAME)-$(VERSION).tar.gz $(SPEC) "$$folder" && \
    rpmbuild --define "_topdir $$folder" --define "_sourcedir $$folder" --define "_srcrpmdir $$folder/out" --define "_rpmdir $$folder/out" \
    --define "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" --define "_buildhost reproducible" \
    --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1"
# The rpm of Debian does not know which Debian packages are installed.
RPMBUILD += $(if $(wildcard /etc/debian_version),--nodeps)

srpm: $(SPEC)
	$(RPMBUILD) -bs "$$folder/$(NAME).spec" && mv "$$folder"/out/*.rpm dist/

rpm: $(SPEC)
	$(RPMBUILD) -bb "$$folder/$(NAME).spec" && mv "$$folder"/out/*.rpm dist/

# Where debhelper and dh-python are; dpkg would ask for a compiler, too. The version is written first: in the source it
# is the one of the last `make version`.
deb: source
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	    tar --extract --directory="$$folder" --file=dist/$(NAME)-$(VERSION).tar.gz && cd "$$folder/$(NAME)-$(VERSION)" && \
	    $(MAKE) --silent version DATE='$(DATE)' && \
	    { dpkg-buildpackage --build=binary --no-sign --no-check-builddeps >"$$folder/log" 2>&1 || { cat "$$folder/log" >&2; exit 1; }; } && \
	    mv "$$folder"/*.deb "$(CURDIR)/dist/"

# Folders that apt and dnf take packages from, to be served over HTTP or copied. They hold what is in dist/ of this
# version. Who publishes them signs them; the last lines say how.
repo: rpm deb
	rm -rf dist/repo && mkdir -p dist/repo/apt dist/repo/dnf
	cp dist/*_$(VERSION)-$(REL)_all.deb dist/repo/apt/
	cp dist/*-$(VERSION)-$(REL)*.noarch.rpm dist/repo/dnf/
	cd dist/repo/apt && apt-ftparchive packages . >Packages && gzip --keep --no-name --best Packages
	cd dist/repo && apt-ftparchive -o APT::FTPArchive::Release::Origin=$(NAME) -o APT::FTPArchive::Release::Suite=stable release apt >Release && \
	    mv Release apt/
	createrepo_c --quiet --revision=$(SOURCE_DATE_EPOCH) --set-timestamp-to-revision dist/repo/dnf
	@echo
	@echo "To sign them:"
	@echo "  gpg --clearsign --output dist/repo/apt/InRelease dist/repo/apt/Release"
	@echo "  rpmsign --addsign dist/repo/dnf/*.rpm && createrepo_c --update dist/repo/dnf"
	@echo "  gpg --detach-sign --armor dist/repo/dnf/repodata/repomd.xml"

# What Qubes' builder reads the version from. A release needs it; a test compares it with the version.
version:
	echo $(VERSION) >version
	printf '%s\n' '$(NAME) ($(VERSION)-$(REL)) unstable; urgency=medium' '' '  * See CHANGELOG.md.' '' \
	    " -- $(MAINTAINER)  $$(LC_ALL=C date -u -R -d '$(DATE)')" >debian/changelog
