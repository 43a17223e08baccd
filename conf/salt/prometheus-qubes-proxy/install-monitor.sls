# In the template of the monitoring qube: Prometheus and the daemon. They run in flagged qubes alone.
{% from 'prometheus-qubes-proxy/packages.jinja' import installed with context %}
{{ installed(['prometheus-qubes-proxy', 'prometheus-qubes-proxy-monitor']) }}
