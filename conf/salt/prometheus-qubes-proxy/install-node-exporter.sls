# In a template of qubes to watch: node_exporter, of the distribution. Debian's package enables the unit itself.
{% set debian = grains['os_family'] == 'Debian' %}
prometheus-qubes-proxy-node-exporter:
  pkg.installed:
    - name: {{ 'prometheus-node-exporter' if debian else 'node-exporter' }}
    - install_recommends: False
{% if not debian %}
  service.enabled:
    - name: prometheus-node-exporter
    - require:
      - pkg: prometheus-qubes-proxy-node-exporter
{% endif %}
