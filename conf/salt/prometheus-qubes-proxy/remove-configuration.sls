# In the monitoring qube: takes configure.sls back. The data in /rw/prometheus stay.
prometheus-qubes-proxy-remove-configuration:
  file.absent:
    - name: /rw/config/prometheus-qubes-proxy.toml
