# In dom0: takes policy.sls back.
prometheus-qubes-proxy-remove-policy:
  file.absent:
    - name: /etc/qubes/policy.d/31-prometheus-qubes-proxy.policy
