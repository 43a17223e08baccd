# In dom0: a file of its own, which leaves 30-user.policy alone.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
prometheus-qubes-proxy-policy:
  file.managed:
    - name: /etc/qubes/policy.d/31-prometheus-qubes-proxy.policy
    - mode: '0644'
    - contents:
      - '# Made by Salt: prometheus-qubes-proxy.policy. The values are in the pillar prometheus-qubes-proxy.'
      - ruddo.PrometheusProxy +{{ settings.exporters.values() | unique | sort | join('+') }} {{ settings.qube }} @tag:{{ settings.tag }} allow autostart=no
      - admin.vm.List * {{ settings.qube }} @adminvm allow target=dom0
      - admin.vm.List * {{ settings.qube }} @tag:{{ settings.tag }} allow target=dom0
