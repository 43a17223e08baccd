# In dom0: removes the monitoring qube WITH ALL ITS DATA. It is in no top file: you have to ask for it by its name.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
prometheus-qubes-proxy-remove-qube:
  qvm.vm:
    - name: {{ settings.qube }}
    - actions:
      - shutdown: pass
      - absent
    - shutdown: []
    - absent: []
