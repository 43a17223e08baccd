# In dom0: the monitoring qube, without network, with the flags of Prometheus and of the daemon.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
prometheus-qubes-proxy-create:
  qvm.vm:
    - name: {{ settings.qube }}
    - present:
      - template: {{ settings.template }}
      - label: {{ settings.label }}
    - prefs:
      - template: {{ settings.template }}
      - netvm: ''
      - autostart: True
      - maxmem: {{ settings.maxmem }}
    - features:
      - enable:
        - servicevm
        - service.prometheus-qubes-proxy
        - service.prometheus-qubes-proxy-monitor
