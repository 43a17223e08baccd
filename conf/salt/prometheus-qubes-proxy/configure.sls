# In the monitoring qube: the daemon's configuration.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
prometheus-qubes-proxy-configure:
  file.managed:
    - name: /rw/config/prometheus-qubes-proxy.toml
    - source: salt://prometheus-qubes-proxy/files/prometheus-qubes-proxy.toml
    - template: jinja
    - context:
        exporters: {{ settings.exporters | json }}
    - mode: '0644'
    - makedirs: True
  cmd.run:
    # If the template got the package only now, the qube has it after its next start.
    - name: systemctl restart prometheus-qubes-proxy || true
    - onchanges:
      - file: prometheus-qubes-proxy-configure
