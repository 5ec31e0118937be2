# Everything is done by the scripts in dev/; this file only names them.
.DEFAULT_GOAL := help
.PHONY: help setup build bench test check wheel pythons clients clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1 \t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup:  ## install what building and testing need (packages, and a .venv in this folder)
	@dev/setup

build: setup  ## build into build/
	@dev/build

bench:  ## set up, build, and measure transfers between two processes of this machine
	@dev/bench

test:  ## set up, build, and run every test
	@dev/test

check:  ## the quick checks of the sources alone
	@dev/check

wheel: build  ## make a wheel, in dist/
	@dev/wheel

pythons: build  ## run the Python tests with every Python that this machine has
	@dev/pythons

clients:  ## run other people's programs on the package (downloads gigabytes; docs/clients.md)
	@dev/clients

clean:  ## remove what was built, and the .venv
	rm -rf build build-* dist .venv
