# What the Salt formula of prometheus-qubes-proxy makes, with the values that it has without this file. In dom0:
#   sudo qubesctl top.enable prometheus-qubes-proxy pillar=True
prometheus-qubes-proxy:
  # The monitoring qube. It is made if it is not there.
  qube: sys-monitor
  # Its template, in which Prometheus is installed.
  template: debian-12-xfce
  label: gray
  # MB; a thousand series take some 10 MB.
  maxmem: 1500

  # Templates of the qubes to watch, in which our service and node_exporter are installed.
  templates:
    - debian-12-xfce
    - fedora-42-xfce

  # Qubes to watch. Each gets the tag, and dom0's policy allows to read what has the tag.
  tag: monitored
  watch: []
  # - work
  # - personal

  # Name and port of the exporters that are read in each of them.
  exporters:
    node: 9100
